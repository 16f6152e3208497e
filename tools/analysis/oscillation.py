"""Report which weights of a training oscillate, where they lie between the borders of their bins, and how it went.

    python tools/analysis/oscillation.py WORK_DIR [WORK_DIR2] [--out DIR] [--layers '*.qkv'] [--names plain regularised]

The newest checkpoint of a finished or running training is read; with two trainings, both are in every table and
picture. Needs vvq_mm.OscillationHook in the training.
"""
import argparse
import difflib
import json
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence

import mmengine
import mmpretrain
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmpretrain.utils import register_all_modules
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from vvq_mm import CheckpointError, QuantizationError, __version__
from vvq_mm.analysis.oscillation import EDGES, NEAR, Flips, add_flips, flips_by_distance
from vvq_mm.hooks.oscillation_hook import CHECKPOINT_KEY, OscillationHook
from vvq_mm.hooks.safe_checkpoint_hook import find_misfits
from vvq_mm.oscillation import OscillationTracker
from vvq_mm.plots.oscillation import latent_histogram, plot_latent_histograms, plot_oscillation
from vvq_mm.plots.oscillation_report import plot_flips_by_distance, plot_layers, plot_share_over_time
from vvq_mm.policy.rules import match
from vvq_mm.registry import HOOKS
from vvq_mm.utils.checkpoint import read_checkpoint
from vvq_mm.utils.evaluate import build_model
from vvq_mm.utils.launch import errors_in_a_sentence
from vvq_mm.weight_layers import WeightLayer, select_weights

ALL = 'all tracked layers'


class Run(NamedTuple):
    """A training as its newest checkpoint shows it."""

    name: str
    checkpoint: Path
    meta: dict  # of the checkpoint: iteration, epoch, config as text, seed
    max_iters: Optional[int]
    hook: OscillationHook
    tracker: OscillationTracker
    layers: Dict[str, WeightLayer]
    flips: Dict[str, Flips]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('work_dir', type=Path, help='work folder of a training, finished or running')
    parser.add_argument('other', type=Path, nargs='?', metavar='work_dir2', help='another one, to compare with')
    parser.add_argument('--out', type=Path, help='folder for oscillation.json and the pictures; '
                        'WORK_DIR/oscillation_report by default')
    parser.add_argument('--layers', nargs='+', metavar='GLOB', help='tracked layers whose latent weights are drawn; '
                        'the first, the middle and the last by default')
    parser.add_argument('--names', nargs='+', metavar='NAME', help="what to call the trainings; their folders' names "
                        'by default')
    args = parser.parse_args()
    args.folders = [args.work_dir] + ([args.other] if args.other else [])
    if args.names is None:
        args.names = [folder.resolve().name for folder in args.folders]
        if len(set(args.names)) < len(args.names):
            args.names = [str(folder) for folder in args.folders]
    if len(set(args.names)) != len(args.folders):
        parser.error('--names needs a different name for each work folder')
    args.out = args.out or args.work_dir / 'oscillation_report'
    return args


def newest_checkpoint(folder: Path) -> Path:
    """Return the checkpoint that MMEngine calls the last; if that is gone, the youngest that is not a "best" one."""
    if not folder.is_dir():
        parent = next(parent for parent in folder.absolute().parents if parent.is_dir())
        near = difflib.get_close_matches(folder.name, [item.name for item in parent.iterdir() if item.is_dir()], n=3)
        raise FileNotFoundError(f'expected the work folder of a training at {folder}, there is no such folder; near it '
                                f'(in {parent}): {", ".join(near) or "none of a similar name"}')
    note = folder / 'last_checkpoint'
    if note.is_file():
        named = Path(note.read_text().strip())
        for path in (folder / named.name, named):  # the folder may have been moved since
            if path.is_file():
                return path
    saved = [path for path in folder.glob('*.pth') if not path.name.startswith('best_')]
    if not saved:
        raise FileNotFoundError(f'expected a checkpoint in {folder}, there is none yet; wait until the training has '
                                'saved one (`interval` of its CheckpointHook), or give the work folder of another')
    return max(saved, key=lambda path: path.stat().st_mtime)


def read_run(folder: Path, name: str) -> Run:
    """Build the model of a training's newest checkpoint and restore what the hook knew."""
    path = newest_checkpoint(folder)
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f'{error}; if the training is running, it may be writing this file: try again') from error
    meta = checkpoint.get('meta', {})
    if CHECKPOINT_KEY not in checkpoint or 'cfg' not in meta:
        raise CheckpointError(f'expected the statistics of vvq_mm.OscillationHook in {path}, it has none; train with '
                              "that hook (default_hooks=dict(oscillation=dict(type='vvq_mm.OscillationHook')))")
    cfg = Config.fromstring(meta['cfg'], '.py')  # of this very checkpoint; the folder may hold configs of later runs
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    model, hook = build_model(cfg), build_hook(cfg)
    problems = find_misfits(model, trained_weights(checkpoint))
    tracked = select_weights(model, hook.max_bits, hook.layers)
    problems += [f'it has no scale for {layer.name}' for layer in tracked if not layer.quantizer.ready]
    if problems:
        raise CheckpointError(f'expected {path} to fit the model of its own config, but {"; ".join(problems[:3])}; '
                              'use the version of the code that it was made with')
    tracker = OscillationTracker(tracked, hook.momentum, hook.threshold)
    tracker.load_state_dict(checkpoint[CHECKPOINT_KEY])
    if tracker.history['iteration'][-1:] != [meta['iter']]:  # the checkpoint is younger than the last log entry
        tracker.record(meta['iter'], (tracker.history['weight'] or [0.0])[-1])
    flips = {layer.name: flips_by_distance(tracker.positions(layer), tracker.states[layer.name].frequency.flatten(),
                                           layer.quantizer.grid, hook.threshold)
             for layer in tqdm(tracked, desc=f'{name}: layers', leave=False)}
    max_iters = checkpoint.get('message_hub', {}).get('runtime_info', {}).get('max_iters')
    return Run(name, path, meta, max_iters, hook, tracker, {layer.name: layer for layer in tracked}, flips)


def build_hook(cfg: Config) -> OscillationHook:
    """Return the config's OscillationHook, or a subclass of it."""
    configs = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    configs = [config for config in configs if config]  # None switches one of MMEngine's own off
    for config in configs:
        kind = HOOKS.get(config['type']) if isinstance(config['type'], str) else config['type']
        if isinstance(kind, type) and issubclass(kind, OscillationHook):
            return HOOKS.build(config)
    raise QuantizationError('expected vvq_mm.OscillationHook among the hooks of the config in the checkpoint, it has '
                            f'{", ".join(str(config["type"]) for config in configs)}')


def trained_weights(checkpoint: dict) -> dict:
    """Return the weights that are trained: beside an average of weights (EMAHook) they are not the first choice."""
    average = checkpoint.get('ema_state_dict', {})
    return {name: average.get(f'module.{name}', value) for name, value in checkpoint['state_dict'].items()}


def check_alike(runs: Sequence[Run]) -> None:
    """Raise if "oscillating" means something else in one run than in another."""
    settings = [tracker_settings(run) for run in runs]
    if settings[0] != settings[-1]:
        words = ' and '.join(f'{setting} in {run.name}' for setting, run in zip(settings, runs))
        raise QuantizationError(f'expected two trainings whose OscillationHook counts alike, got {words}: their shares '
                                'do not compare; report each by itself')


def tracker_settings(run: Run) -> dict:
    return dict(momentum=run.hook.momentum, threshold=run.hook.threshold, interval=run.hook.interval)


def common_layers(runs: Sequence[Run], console: Console) -> List[str]:
    """Return the layers that all runs track, in the order of the model, and name those that are left out."""
    names = [name for name in runs[0].layers if all(name in run.layers for run in runs)]
    for run in runs:
        alone = [name for name in run.layers if name not in names]
        if alone:
            console.print(f'{len(alone)} layers are tracked in {run.name} alone and left out: {", ".join(alone[:5])}'
                          f'{", ..." if len(alone) > 5 else ""}', highlight=False, markup=False, soft_wrap=True)
    if not names:
        first = ' and '.join(f'{next(iter(run.layers))} in {run.name}' for run in runs)
        raise QuantizationError(f'expected two trainings that track some layers of the same name, they share none '
                                f'(the first is {first}); give trainings of the same network')
    return names


def choose_layers(names: Sequence[str], patterns: Optional[Sequence[str]]) -> List[str]:
    """Return the layers to draw, in the order of the model."""
    if patterns is None:
        return [names[index] for index in sorted({0, len(names) // 2, len(names) - 1})]
    for pattern in patterns:
        if not match(pattern, names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
            raise QuantizationError(f'expected {pattern!r} in --layers to fit the name of a tracked layer, it fits '
                                    f'none of {len(names)}; the nearest names are {", ".join(near)}')
    return [name for name in names if any(match(pattern, [name]) for pattern in patterns)]


def state_in_words(run: Run) -> str:
    """Return how far the training is, and its regulariser."""
    words = f'iteration {run.meta["iter"]} of {run.max_iters or "an unknown number"}'
    regularizer = run.hook.regularizer
    drive = f'{type(regularizer).__name__}, weight {run.hook.weight_schedule}' if regularizer else 'no regulariser'
    return f'{words}; {drive}'


def make_table(runs: Sequence[Run], rows: Dict[str, List[dict]]) -> Table:
    """One row per layer; the numbers of two runs stand side by side."""
    labels = 'ab'[:len(runs)] if len(runs) > 1 else ('', )
    table = Table(title='   '.join(f'{label}: {run.name}' if label else run.name for label, run in zip(labels, runs)),
                  caption=f'near: at most {NEAR} codes from a border; beyond: beyond the last code, clipped')
    table.add_column('layer', overflow='fold')
    table.add_column('bits', justify='right')
    table.add_column('weights', justify='right')
    columns = dict(oscillating='{:.2%}', frequency='{:.2g}', near='{:.1%}', beyond='{:.1%}')
    for column in columns:
        for label in labels:
            table.add_column(f'{column} {label}'.strip(), justify='right')
    for name, parts in rows.items():
        widths = '' if name == ALL else ' / '.join(dict.fromkeys(
            str(run.layers[name].quantizer.bits) for run in runs))
        numbers = [text.format(part[column]) for column, text in columns.items() for part in parts]
        table.add_row(name, widths, f'{parts[0]["weights"]:,}', *numbers, style='bold' if name == ALL else None)
    return table


def make_json(runs: Sequence[Run], rows: Dict[str, List[dict]], drawn: Sequence[str]) -> dict:
    """Return all that the table and the pictures were made of."""
    entries = []
    for index, run in enumerate(runs):
        histograms = {}
        for name in drawn:
            edges, shares = latent_histogram(**positions(run, name))
            histograms[name] = dict(bits=run.layers[name].quantizer.bits, qmin=run.layers[name].quantizer.qmin,
                                    qmax=run.layers[name].quantizer.qmax, edges=edges.tolist(), shares=shares.tolist())
        common = [name for name in rows if name != ALL]
        layers = {name: dict(bits=run.layers[name].quantizer.bits, **rows[name][index],
                             by_distance=run.flips[name].by_distance()) for name in common}
        entries.append(dict(
            name=run.name, checkpoint=str(run.checkpoint), state=state_in_words(run), config=run.meta['cfg'],
            iteration=run.meta['iter'], max_iters=run.max_iters, seed=run.meta.get('seed'),
            tracker=tracker_settings(run),
            all=dict(rows[ALL][index], by_distance=add_flips(run.flips[name] for name in common).by_distance()),
            layers=layers, history=run.tracker.history, histograms=histograms))
    versions = dict(vvq_mm=__version__, torch=torch.__version__, mmengine=mmengine.__version__,
                    mmpretrain=mmpretrain.__version__)
    return dict(versions=versions, distance_edges=EDGES, near=NEAR, runs=entries)


def positions(run: Run, name: str) -> dict:
    """Return a layer's latent weights in units of its codes, and the limits of these."""
    layer = run.layers[name]
    return dict(positions=run.tracker.positions(layer), qmin=layer.quantizer.qmin, qmax=layer.quantizer.qmax)


def draw(data: dict, runs: Sequence[Run], drawn: Sequence[str], folder: Path) -> None:
    entries = {run['name']: run for run in data['runs']}
    threshold = runs[0].hook.threshold
    histories = {name: run['history'] for name, run in entries.items()}
    if len(runs) == 1:
        plot_oscillation(runs[0].tracker.history, folder / 'share_over_time.png', threshold)
    else:
        plot_share_over_time(histories, folder / 'share_over_time.png', threshold)
    shares = {name: {layer: row['oscillating'] for layer, row in run['layers'].items()}
              for name, run in entries.items()}
    totals = {name: run['all']['oscillating'] for name, run in entries.items()}
    plot_layers(shares, totals, folder / 'share_by_layer.png', threshold)
    plot_flips_by_distance({name: run['all']['by_distance'] for name, run in entries.items()}, EDGES,
                           folder / 'flips_by_distance.png', threshold)
    panels = [dict(positions(run, name), title=f'{name}  ({run.layers[name].quantizer.bits} bit)'
                   + (f'\n{run.name}' if len(runs) > 1 else '')) for name in drawn for run in runs]
    plot_latent_histograms(panels, folder / 'latent_weights.png', pairs=len(runs) > 1)


def report(args: argparse.Namespace) -> None:
    register_all_modules()
    MMLogger.get_instance('oscillation_report').setLevel('ERROR')
    console = Console(width=None if sys.stdout.isatty() else 160)
    runs = [read_run(folder, name) for folder, name in zip(args.folders, args.names)]
    check_alike(runs)
    names = common_layers(runs, console)
    drawn = choose_layers(names, args.layers)
    rows = {name: [run.flips[name].summary() for run in runs] for name in names}
    rows[ALL] = [add_flips(run.flips[name] for name in names).summary() for run in runs]
    data = make_json(runs, rows, drawn)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / 'oscillation.json').write_text(json.dumps(data, indent=1), encoding='utf-8')
    draw(data, runs, drawn, args.out)
    console.print(make_table(runs, rows))
    for run, total in zip(runs, rows[ALL]):
        share = total['near_of_oscillating']
        where = '' if share is None else f' ({share:.0%} of them near a border, as are {total["near"]:.0%} of all)'
        peak, when = max(zip(run.tracker.history['share'], run.tracker.history['iteration']))
        console.print(f'{run.name}: {total["oscillating"]:.2%} of {total["weights"]:,} weights oscillate{where}, '
                      f'at most {peak:.2%} (at iteration {when}); '
                      f'{state_in_words(run)}; {run.checkpoint}', highlight=False, markup=False, soft_wrap=True)
    console.print(f'written to {args.out}', highlight=False, markup=False)


if __name__ == '__main__':
    arguments = parse_args()
    with errors_in_a_sentence():
        report(arguments)
