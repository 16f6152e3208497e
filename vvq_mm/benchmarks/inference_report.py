"""Results of the inference benchmark as tables.

A result is a plain dict of one row at one batch size and number of threads, as :func:`make_results` makes it; what was
not measured is None and shown as a dash.
"""
from itertools import groupby
from typing import Dict, List, Optional, Sequence, Tuple

from rich import box
from rich.table import Table

from .inference import Measured
from .inference_bars import fastest
from .inference_rows import FP32, OURS, Row
from .report import MIB, bars_table, row

MB = 10**6
COLUMNS = ('row', 'products in', 'ms', 'spread', 'over its FP32', 'over fastest FP32', 'file MB', 'peak MiB', 'top-1 %')


def make_results(rows: Sequence[Row], measured: Dict[int, Measured], memory: Dict[Tuple[str, int], Optional[int]]
                 ) -> List[dict]:
    """Return a result for every row that ran, by number of threads, batch size and row.

    Args:
        rows (sequence of Row): all rows.
        measured (dict): number of threads -> what was measured.
        memory (dict): (name of the row, batch size) -> peak memory.

    Raises:
        ValueError: no full-precision row ran.
    """
    results, accuracy = [], {}
    for threads, part in measured.items():
        accuracy.update(part.accuracy)
        for size, timings in part.timings.items():
            reference = fastest(rows, timings, FP32)
            if reference is None:
                raise ValueError('expected a full-precision row to compare with, got none; let --rows take one')
            for item in (item for item in rows if item.name in timings):
                own = fastest(rows, timings, FP32, item.runtime)
                result = row(item.name, item.group, timings[item.name], timings[reference], size,
                             peak_bytes=memory.get((item.name, size)))
                del result['saved_bytes'], result['note']  # of training
                results.append(dict(
                    result, runtime=item.runtime, threads=threads, batch_size=size, reference=reference,
                    own_reference=own, own_ratio=timings[item.name].over(timings[own]).median if own else None,
                    file_bytes=item.file_bytes, products=_products(item, part.integer[item.name]),
                    accuracy=accuracy.get(item.name)))
    return results


def _products(item: Row, integer: Optional[List[int]]) -> str:
    """Return what the products of a row compute in; those of ours only as far as integer kernels were seen."""
    if item.group != OURS:
        return item.group
    count, total = integer or (0, 0)
    return f'int8: {count} of {total}' if count else f'FP32: no integer kernel in {total}'


def cells(result: dict) -> List[str]:
    """Return a result in words, one per column of ``COLUMNS``."""
    def number(value, form, unit=1):
        return '–' if value is None else format(value / unit, form)

    seconds = result['seconds']
    return [result['name'], result['products'], number(seconds['median'], ',.1f', 1e-3),
            f'{1000 * seconds["q1"]:,.1f}–{1000 * seconds["q3"]:,.1f}', number(result['own_ratio'], '.2f'),
            number(result['ratio'], '.2f'), number(result['file_bytes'], ',.2f', MB),
            number(result['peak_bytes'], ',.0f', MIB), number(result['accuracy'], '.2f')]


def settings_of(results: List[dict]) -> List[Tuple[str, List[dict]]]:
    """Return (title, results) for each number of threads and batch size."""
    key = ('threads', 'batch_size')
    groups = groupby(results, key=lambda result: [result[name] for name in key])
    return [(f'{threads} thread{"s" * (threads > 1)}, batch {size}', list(part)) for (threads, size), part in groups]


def markdown_tables(results: List[dict]) -> str:
    """Return all results, a table for each number of threads and batch size."""
    parts = []
    for title, part in settings_of(results):
        lines = [COLUMNS, [':--', ':--', *['--:'] * (len(COLUMNS) - 2)], *map(cells, part)]
        parts.append('\n'.join([f'**{title}**', '', *(f'| {" | ".join(line)} |' for line in lines)]))
    return '\n\n'.join(parts)


def terminal_tables(results: List[dict]) -> List[Table]:
    """Return all results as rich tables, the groups apart."""
    tables = []
    for title, part in settings_of(results):
        table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
        for column in COLUMNS:
            table.add_column(column, justify='left' if column in COLUMNS[:2] else 'right',
                             no_wrap=column in COLUMNS[:1], style='bold' if column == 'over fastest FP32' else None)
        for result, following in zip(part, [*part[1:], None]):
            table.add_row(*cells(result), end_section=following is None or following['group'] != result['group'])
        tables.append(table)
    return tables


def compact_report(runs: List[dict]) -> str:
    """Return a short markdown table per run, under a line about machine and settings, and its bars.

    The table has a line per row and a column per number of threads and batch size: milliseconds, and in brackets the
    ratio to the fastest full-precision row of that column.

    Args:
        runs (list of dict): contents of files that tools/benchmark_inference.py wrote.
    """
    return '\n\n'.join('\n\n'.join([_caption(run), _compact_table(run['results']),
                                    *([bars_table(run['bars'])] if run['bars'] else [])]) for run in runs)


def _caption(run: dict) -> str:
    machine, settings = run['machine'], run['settings']
    versions = ', '.join(f'{name} {version}' for name, version in settings['versions'].items())
    return (f'**{settings["model"]}** on {machine["device"]}, PyTorch {machine["torch"]}, {versions}; milliseconds, '
            f'median of {settings["rounds"]} rounds; in brackets the ratio to the fastest FP32 row of the column, in '
            'bold.')


def _compact_table(results: List[dict]) -> str:
    columns = settings_of(results)
    known = {result['name']: result for result in results}
    with_accuracy = any(result['accuracy'] is not None for result in results)
    head = ['row', 'products in', *(title for title, _ in columns), 'file MB', 'peak MiB',
            *['top-1 %'] * with_accuracy]
    lines = [head, [':--', ':--', *['--:'] * (len(head) - 2)]]
    for name, result in known.items():
        times = [next((_time(other) for other in part if other['name'] == name), '–') for _, part in columns]
        words = cells(result)
        lines.append([name, words[1], *times, words[6], words[7], *words[8:] * with_accuracy])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _time(result: dict) -> str:
    words = f'{1000 * result["seconds"]["median"]:,.1f} ({result["ratio"]:.2f})'
    return f'**{words}**' if result['name'] == result['reference'] else words
