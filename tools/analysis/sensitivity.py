"""Which parts of a model suffer most from quantisation: everything quantised but one part, for each part.

    python tools/analysis/sensitivity.py CONFIG [CHECKPOINT] [--parts types | blocks | heads | layers | query FFN ...]
    python tools/analysis/sensitivity.py CONFIG --mode qat --iterations 400 --seeds 0 1 2
    python tools/analysis/sensitivity.py CONFIG --suggest average_bits=3

`ptq` evaluates right after calibration, in minutes; `qat` trains each variant, as the paper does. `--suggest` writes a
mixed-precision plan to train with: policy=dict(_delete_=True, type='PlanFile', path='DIR/policy.json').
"""
import argparse
import json
import sys
from importlib import import_module
from pathlib import Path
from statistics import mean

from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmpretrain.utils import register_all_modules
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import vvq_mm  # noqa: F401  (makes vvq_mm:: bases known)
from vvq_mm.analysis.parts import SETS, choose_parts
from vvq_mm.analysis.sensitivity import weight_share
from vvq_mm.plots.sensitivity import plot_sensitivity
from vvq_mm.studies import execute
from vvq_mm.studies.check import check_configs
from vvq_mm.studies.leave_one_out import ALL, make_runs, summarise
from vvq_mm.studies.rows import VERSIONS
from vvq_mm.utils.launch import errors_in_a_sentence, existing_config
from vvq_mm.utils.sensitivity import post_training
from vvq_mm.utils.suggest import GIGA, parse_budget, suggest
from vvq_mm.utils.trial import Trial, quantised_model


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of a quantised training')
    parser.add_argument('checkpoint', nargs='?', help="weights (default: the config's load_from)")
    parser.add_argument('--mode', choices=['ptq', 'qat'], default='ptq')
    parser.add_argument('--parts', nargs='+', default=['types'], metavar='PART',
                        help='types, blocks, heads, layers, or parts by name (default: types)')
    parser.add_argument('--out', type=Path, help='folder of JSON and picture (default: work_dirs/sensitivity/CONFIG)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        help='override settings of the config, key=value')
    ptq = parser.add_argument_group('ptq and --suggest')
    ptq.add_argument('--images', type=int, default=2000, help='of val_dataloader to evaluate on (default: 2000)')
    ptq.add_argument('--calibration-images', type=int, default=512, help='of train_dataloader (default: 512)')
    ptq.add_argument('--suggest', metavar='BUDGET', help='average_bits=NUMBER, or bitops=GIGA per image')
    ptq.add_argument('--widths', nargs='+', type=int, default=[2, 3, 4, 8], help='to choose from (default: 2 3 4 8)')
    qat = parser.add_argument_group('qat')
    qat.add_argument('--iterations', type=int, help='training steps (default: those of the config)')
    qat.add_argument('--seeds', nargs='+', type=int, default=[0], help='of the trainings (default: 0)')
    qat.add_argument('--jobs', type=int, default=1, help='trainings at a time (default: 1)')
    args = parser.parse_args()
    args.out = args.out or Path('work_dirs/sensitivity') / Path(args.config).stem
    return args


def run(args: argparse.Namespace) -> None:
    register_all_modules()
    MMLogger.get_current_instance().setLevel('WARNING')
    cfg = Config.fromfile(existing_config(args.config))
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    action = run_suggest if args.suggest else run_ptq if args.mode == 'ptq' else run_qat
    action(args, cfg, console)


def run_ptq(args: argparse.Namespace, cfg: Config, console: Console) -> None:
    trial = Trial(cfg, args.checkpoint, args.images, args.calibration_images)
    result = post_training(trial, args.parts)
    base, full = result.quantised, result.full_precision
    table = make_table('Everything quantised but one part, right after calibration',
                       ('part in float', 'of weights', 'top-1', 'gain', 'loss', 'gain'))
    table.add_row('everything', '', f'{full.top1:.2f}', f'{full.top1 - base.top1:+.2f}', f'{full.loss:.4f}',
                  f'{base.loss - full.loss:+.4f}')
    for row in result.variants:
        table.add_row(row.part, f'{row.weights:.1%}', f'{row.top1:.2f}', f'{row.gain_top1:+.2f}', f'{row.loss:.4f}',
                      f'{row.gain_loss:+.4f}')
    table.add_row('nothing', '', f'{base.top1:.2f}', '', f'{base.loss:.4f}', '')
    console.print(table)
    rows = [variant._asdict() for variant in result.variants]
    name = f'ptq_{file_name(args.parts)}'
    write(args, f'{name}.json', console, mode='ptq', checkpoint=str(trial.checkpoint), images=base.images,
          calibration_images=args.calibration_images, full_precision=full._asdict(), quantised=base._asdict(),
          rows=rows)
    draw(args, f'{name}.png', console, rows, f'right after calibration, on {base.images:,} images',
         dict(gain_top1=full.top1 - base.top1, gain_loss=base.loss - full.loss))


def run_qat(args: argparse.Namespace, cfg: Config, console: Console) -> None:
    model = quantised_model(cfg)
    parts = choose_parts(model, args.parts)
    config = args.config
    if args.cfg_options:  # the runs inherit from a file
        args.out.mkdir(parents=True, exist_ok=True)
        config = str(args.out / 'config.py')
        cfg.dump(config)
    runs = make_runs(cfg, config, model.plan, parts, args.seeds, args.out, args.iterations, args.checkpoint)
    check_configs(runs)
    with tqdm(total=len(runs), desc='trainings') as bar:
        rows = execute(runs, args.out / 'sensitivity.csv', args.out / 'runs', args.jobs,
                       report=lambda done, *_: bar.update(done - bar.n))
    result = summarise(rows, parts, [weight_share(model, part) for part in parts])
    base, full = (mean(float(row[key]) for row in rows if row['method'] == ALL) for key in ('last', 'full_precision'))
    table = make_table(f'Everything quantised but one part, trained for {rows[0]["steps"]} steps, {len(args.seeds)} '
                       'seed(s)', ('part in float', 'of weights', 'top-1', 'gain', 'standard error'))
    table.add_row('everything (not trained)', '', f'{full:.2f}', f'{full - base:+.2f}', '')
    for row in result:
        table.add_row(row['part'], f'{row["weights"]:.1%}', f'{row["top1"]:.2f}', f'{row["gain_top1"]:+.2f}',
                      '' if row['error'] is None else f'{row["error"]:.2f}')
    table.add_row('nothing', '', f'{base:.2f}', '', '')
    console.print(table)
    name = f'qat_{file_name(args.parts)}'
    write(args, f'{name}.json', console, mode='qat', checkpoint=str(args.checkpoint or cfg.get('load_from')),
          seeds=args.seeds, steps=int(rows[0]['steps']), full_precision=full, quantised=base, rows=result)
    caption = f'{rows[0]["steps"]} training steps, {len(args.seeds)} seed(s), bars: standard error of the difference'
    draw(args, f'{name}.png', console, result, caption if len(args.seeds) > 1 else caption.partition(', bars')[0],
         dict(gain_top1=full - base))


def run_suggest(args: argparse.Namespace, cfg: Config, console: Console) -> None:
    kind, budget = parse_budget(args.suggest)
    trial = Trial(cfg, args.checkpoint, args.images, args.calibration_images)
    result = suggest(trial, kind, budget, args.widths)
    widths = sorted(result.layers[0]['losses'])
    layers = make_table('Loss with one layer alone quantised', ('layer', 'chosen', *(f'{bits} bit' for bits in widths)))
    for row in result.layers:
        layers.add_row(row['name'], str(row['bits']), *(f'{row["losses"][bits]:.4f}' for bits in widths))
    plans = make_table('Right after calibration, before any training',
                       ('plan', 'average bits', 'top-1', 'loss', 'BitOps (G)', 'size (MB)'))
    plans.add_row('full precision', '32', f'{result.full_precision.top1:.2f}', f'{result.full_precision.loss:.4f}',
                  f'{result.mixed.cost.float_bit_operations / GIGA:.4g}', f'{result.mixed.cost.float_bytes / 1e6:.3f}')
    for name, plan in (('mixed', result.mixed), (f'uniform {result.uniform_bits} bit', result.uniform)):
        plans.add_row(name, f'{plan.average_bits:.2f}', f'{plan.score.top1:.2f}', f'{plan.score.loss:.4f}',
                      f'{plan.cost.bit_operations / GIGA:.4g}', f'{plan.cost.bytes / 1e6:.3f}')
    console.print(layers, plans)
    gain = result.uniform.score.loss - result.mixed.score.loss
    console.print(f'Before training, the mixed plan is {"better" if gain > 0 else "NOT better"} than the uniform one: '
                  f'its loss is {abs(gain):.4f} {"lower" if gain > 0 else "higher"}. Training may change that.')
    write(args, 'suggest.json', console, budget=args.suggest, checkpoint=str(trial.checkpoint),
          images=result.full_precision.images, calibration_images=args.calibration_images, layers=result.layers,
          full_precision=result.full_precision._asdict(), uniform_bits=result.uniform_bits,
          **{name: dict(score=plan.score._asdict(), cost=plan.cost._asdict(), average_bits=plan.average_bits)
             for name, plan in dict(mixed=result.mixed, uniform=result.uniform).items()})
    path = args.out / 'policy.json'
    path.write_text(json.dumps(dict(config=args.config, plan=result.mixed.plan.to_dict(),
                                    cost=result.mixed.cost._asdict()), indent=1))
    console.print(f"written to {path}; to train with it: policy=dict(_delete_=True, type='PlanFile', path='{path}')",
                  soft_wrap=True)


def make_table(title: str, columns: tuple) -> Table:
    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify='right' if number else 'left', overflow='fold')
    return table


def file_name(words: list) -> str:
    """Return what the files of these parts are called."""
    return '_'.join(words) if set(words) <= set(SETS) else 'chosen'


def write(args: argparse.Namespace, name: str, console: Console, **data) -> None:
    """Write a JSON file with what was measured, on what, and by which versions."""
    args.out.mkdir(parents=True, exist_ok=True)
    versions = {module: import_module(module).__version__ for module in VERSIONS}
    text = json.dumps(dict(config=args.config, cfg_options=args.cfg_options, **data, versions=versions), indent=1)
    (args.out / name).write_text(text)
    console.print(f'written to {args.out / name}', soft_wrap=True)


def draw(args: argparse.Namespace, name: str, console: Console, rows: list, caption: str, full: dict) -> None:
    title = f'What {Path(args.config).stem} gains with one part in float'
    plot_sensitivity(rows, args.out / name, title, caption, full)
    console.print(f'written to {args.out / name}', soft_wrap=True)


if __name__ == '__main__':
    arguments = parse_args()
    with errors_in_a_sentence():
        run(arguments)
