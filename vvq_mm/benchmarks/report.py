"""Results of a benchmark as JSON, as a markdown table, and as a table in the terminal.

A result is a plain dict as :func:`row` makes it; what was not measured is None and shown as a dash.
"""
import json
import os
import platform
from pathlib import Path
from typing import List, Optional, Union

import torch
from rich import box
from rich.table import Table

from vvq_mm.version import __version__

from .measure import Timing

MIB = 2**20
COLUMNS = ('variant', 'ratio', 'spread', 'ms', 'saved MiB', 'peak MiB', 'images/s', 'note')


def row(name: str, group: str, timing: Timing, reference: Timing, batch: int, saved_bytes: Optional[int] = None,
        peak_bytes: Optional[int] = None, note: str = '') -> dict:
    """Return one result: builtins alone.

    Args:
        name (str): what ran.
        group (str): the family that it is drawn with.
        timing (Timing): of one training step.
        reference (Timing): of the full-precision step in the same rounds.
        batch (int): images of a step.
        saved_bytes (int, optional): kept for backward.
        peak_bytes (int, optional): most memory held at once.
        note (str): shown beside the row. Defaults to nothing.

    Example:
        >>> row('ours', 'vvq_mm', Timing([3., 3.]), Timing([2., 2.]), batch=6)['ratio']
        1.5
    """
    ratio = timing.over(reference)
    lower, upper = timing.quartiles
    ratio_lower, ratio_upper = ratio.quartiles
    return dict(name=name, group=group, ratio=ratio.median, ratio_q1=ratio_lower, ratio_q3=ratio_upper,
                seconds=dict(median=timing.median, q1=lower, q3=upper, minimum=timing.minimum,
                             rounds=len(timing.seconds)),
                saved_bytes=saved_bytes, peak_bytes=peak_bytes, images_per_second=batch / timing.median, note=note)


def machine(device: Union[str, torch.device] = 'cpu') -> dict:
    """Return what the numbers depend on beside the settings: versions, device, threads."""
    cuda = torch.device(device).type == 'cuda'
    return dict(vvq_mm=__version__, torch=torch.__version__, python=platform.python_version(),
                device=torch.cuda.get_device_name() if cuda else _cpu_name(), cuda=torch.version.cuda if cuda else None,
                cores=os.cpu_count(), threads=torch.get_num_threads(),
                cpu_capability=torch.backends.cpu.get_cpu_capability())


def _cpu_name() -> str:
    """Return the model name of the processor where Linux tells it, else its architecture."""
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def write_json(path: Union[str, Path], results: List[dict], settings: dict,
               device: Union[str, torch.device] = 'cpu', **blocks) -> None:
    """Write results, settings (model, batch, rounds and so on: builtins), machine and other blocks by name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = dict(machine=machine(device), settings=settings, results=results, **blocks)
    path.write_text(json.dumps(data, indent=2) + '\n')


def cells(result: dict) -> List[str]:
    """Return a result in words, one per column of ``COLUMNS``."""
    def number(value, form, unit=1):
        return '–' if value is None else format(value / unit, form)

    return [result['name'], number(result['ratio'], '.2f'),
            f'{result["ratio_q1"]:.2f}–{result["ratio_q3"]:.2f}',
            number(result['seconds']['median'], ',.1f', 1e-3), number(result['saved_bytes'], ',.0f', MIB),
            number(result['peak_bytes'], ',.0f', MIB), number(result['images_per_second'], ',.1f'), result['note']]


def markdown_table(results: List[dict]) -> str:
    """Return the results as a markdown table; the column after the name is the ratio to the full-precision step.

    Example:
        >>> print(markdown_table([]))
        | variant | ratio | spread | ms | saved MiB | peak MiB | images/s | note |
        |:--|--:|--:|--:|--:|--:|--:|:--|
    """
    alignment = '|'.join([':--', *['--:'] * (len(COLUMNS) - 2), ':--'])
    lines = [' | '.join(COLUMNS), *(' | '.join(cell.replace('|', '\\|') for cell in cells(result))
                                    for result in results)]
    return '\n'.join([f'| {lines[0]} |', f'|{alignment}|', *(f'| {line} |' for line in lines[1:])])


def bars_table(bars: List[dict]) -> str:
    """Return what :func:`vvq_mm.benchmarks.bars.judge` found as a markdown table."""
    lines = [f'| {bar["what"]} | {bar["measured"]:.3f} | '
             + ('none | |' if bar['limit'] is None else f'{bar["bound"]} {bar["limit"]} | {"yes" if bar["met"] else "no"} |')
             for bar in bars]
    return '\n'.join(['| what | measured | bar | met |', '|:--|--:|--:|:--|', *lines])


def compact_report(runs: List[dict]) -> str:
    """Return a short markdown table per run, each under a line about machine and settings.

    Args:
        runs (list of dict): contents of files that :func:`write_json` wrote.
    """
    return '\n\n'.join(f'{_caption(run)}\n\n{_compact_table(run["results"])}\n\n{bars_table(run["bars"])}'
                       for run in runs)


def _caption(run: dict) -> str:
    machine, settings = run['machine'], run['settings']
    threads = '' if machine['cuda'] else f', {machine["threads"]} thread{"s" * (machine["threads"] > 1)}'
    return (f'**{settings["config"]}, {settings["image_size"]} px, batch {settings["batch_size"]}** on '
            f'{machine["device"]}{threads}, PyTorch {machine["torch"]}, median of {settings["rounds"]} rounds; 1.00 is '
            f'"{settings["references"]["step"]}".')


def _compact_table(results: List[dict]) -> str:
    shown = [COLUMNS.index(name) for name in ('variant', 'ratio', 'ms', 'saved MiB', 'images/s', 'note')]
    rows = [COLUMNS, ['--:' if name != 'variant' else ':--' for name in COLUMNS], *map(cells, results)]
    return '\n'.join(f'| {" | ".join(row[index] for index in shown)} |' for row in rows)


def terminal_table(results: List[dict], title: str = '') -> Table:
    """Return the results as a rich table, the groups apart; print it with ``rich.console.Console().print``."""
    table = Table(title=title or None, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify='left' if column in ('variant', 'note') else 'right',
                         no_wrap=column != 'note', style='bold' if column == 'ratio' else None)
    for result, following in zip(results, [*results[1:], None]):
        table.add_row(*cells(result), end_section=following is None or following['group'] != result['group'])
    return table
