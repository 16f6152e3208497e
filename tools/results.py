"""Train the shipped configs of a family with several seeds, and make the README's table of results.

    python tools/results.py run digits [--seeds 0 1 2] [--configs vit_w2a2 ...]
    python tools/results.py report [--write | --check]

Run it in the root of the repository. A finished run is a row of docs/results/FAMILY.csv; what has a row is skipped, so
after a kill the same command goes on. Fashion-MNIST without a network needs tools/prepare_fashion_mnist.py first.
"""
import argparse
import csv
import json
import shlex
import subprocess
import sys
import time
from importlib import import_module
from itertools import product
from pathlib import Path
from statistics import mean, stdev

OUT, README = Path('docs/results'), Path('README.md')
# `prerequisites`: what must exist, in this order, and the arguments of Python that make it
FAMILIES = {
    'digits': dict(
        data='Digits',
        model='ViT, 4 blocks of width 64',
        configs=('vit_fp32', 'vit_w4a4', 'vit_w3a3', 'vit_w2a2'),
        prerequisites={
            'data/digits_soft_labels':
                'tools/soft_labels.py make configs/digits/vit_fp32.py configs/digits/vit_fp32.pth '
                '--out data/digits_soft_labels --num-crops 16 --topk 10 --scale 0.6 1 --flip-prob 0',
        }),
    'fashion_mnist': dict(
        data='Fashion-MNIST',
        model='DeiT, 4 blocks of width 64',
        configs=('deit_fp32', 'deit_w4a4', 'deit_w3a3', 'deit_w2a2'),
        prerequisites={
            'work_dirs/deit_fp32/epoch_30.pth':
                'tools/train.py configs/fashion_mnist/deit_fp32.py --work-dir work_dirs/deit_fp32',
            'data/fashion_mnist_soft_labels':
                'tools/soft_labels.py make configs/fashion_mnist/deit_fp32.py work_dirs/deit_fp32/epoch_30.pth '
                '--out data/fashion_mnist_soft_labels --num-crops 8 --topk 10 --scale 0.6 1 --batch-size 500',
        }),
}
VERSIONS = ('torch', 'mmengine', 'mmpretrain', 'vvq_mm')
ACCURACIES = ('full_precision', 'calibrated', 'last', 'best')
COLUMNS = ('dataset', 'config', 'bits', 'seed', *ACCURACIES, 'steps', 'crops', 'train_seconds', *VERSIONS)
HEADER = '| data | model | W/A | full precision | calibrated only | last | best | seeds | steps | crops | wall time |'
CAPTION = '''\
Top-1 accuracy in % on the test images: mean ± standard deviation over seeds, without ± where all agree.
"Full precision" is the model that training starts from, "calibrated only" its quantised form before the first step.
The best epoch is chosen on the test images themselves, so "last", the accuracy at the end of training, is the honest
column. Wall time is one run of `tools/train.py` from start to exit, with calibration, validations and checkpoints,
without the making of soft labels. Made by `python tools/results.py report --write` from the rows in `docs/results`.'''


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    run = commands.add_parser('run', help='train what has no row yet')
    run.add_argument('family', choices=list(FAMILIES))
    run.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    run.add_argument('--configs', nargs='+', metavar='NAME', help='names without .py (default: the quantised ones)')
    run.add_argument('--cfg-options', nargs='+', default=[], help='settings for tools/train.py; need another --out')
    report = commands.add_parser('report', help='print the table of all rows')
    action = report.add_mutually_exclusive_group()
    action.add_argument('--write', action='store_true', help='put the table between the marks in the README')
    action.add_argument('--check', action='store_true', help='exit with 1 if the table in the README is another')
    for command in (run, report):
        command.add_argument('--out', type=Path, default=OUT, help=f'folder of the CSV files (default: {OUT})')
    return parser.parse_args()


def run_family(args: argparse.Namespace) -> None:
    known, file = FAMILIES[args.family]['configs'], args.out / f'{args.family}.csv'
    configs = args.configs or [name for name in known if not name.endswith('fp32')]
    if unknown := sorted(set(configs) - set(known)):
        raise SystemExit(f'expected some of {", ".join(known)} for --configs, got {", ".join(unknown)}')
    if args.cfg_options and args.out == OUT:
        raise SystemExit(f'expected another --out than {OUT}, where rows are of the configs as shipped: --cfg-options')
    for path, command in FAMILIES[args.family]['prerequisites'].items():
        if not Path(path).exists():
            run_python(shlex.split(command))
    runs = list(product(configs, args.seeds))
    for number, (name, seed) in enumerate(runs, start=1):
        done = any((row['config'], row['seed']) == (name, str(seed)) for row in read_rows(file))
        print(f'[{number}/{len(runs)}] {name}, seed {seed}' + f': has a row in {file}' * done, flush=True)
        if done:
            continue
        work_dir, began = Path('work_dirs') / args.out.name / f'{name}_seed{seed}', time.perf_counter()
        run_python(['tools/train.py', f'configs/{args.family}/{name}.py', '--work-dir', str(work_dir),
                    '--cfg-options', *args.cfg_options, f'randomness.seed={seed}'])
        cost = dict(train_seconds=f'{time.perf_counter() - began:.1f}')
        add_row(file, dict(dataset=args.family, config=name, seed=seed, **cost, **measure(work_dir, name)))


def run_python(arguments: list) -> None:
    print('python', shlex.join(arguments), flush=True)
    code = subprocess.run([sys.executable, *arguments]).returncode
    if code:
        raise SystemExit(f'expected {arguments[0]} to succeed, got exit status {code}; what it said is above. Finished '
                         'runs keep their rows: mend it and give the same command again')


def measure(work_dir: Path, name: str) -> dict:
    """Return what the finished run in ``work_dir`` reached, what it cost, and the versions it ran with."""
    from mmengine.config import Config
    from mmpretrain.registry import DATASETS
    from mmpretrain.utils import register_all_modules

    from vvq_mm.hooks.training_summary_hook import crops_per_image
    from vvq_mm.utils.checkpoint import read_checkpoint
    register_all_modules()
    config = Config.fromfile(work_dir / f'{name}.py')
    checkpoint = read_checkpoint((work_dir / 'last_checkpoint').read_text())
    log = max(work_dir.glob('*/vis_data/scalars.json')).read_text()  # checkpoints are older than the last validation
    accuracies = [line['accuracy/top1'] for line in map(json.loads, log.splitlines()) if 'accuracy/top1' in line]
    before = checkpoint.get('accuracy_report', dict(float=accuracies[-1]))  # none in a full-precision run
    values = before['float'], before.get('calibrated'), accuracies[-1], max(accuracies)
    policy, dataset = config.model.get('policy'), DATASETS.build(config.train_dataloader.dataset)
    return dict(
        {name: '' if value is None else f'{value:.2f}' for name, value in zip(ACCURACIES, values)},
        bits=f'{policy.weight.bits}/{policy.act.bits}' if policy else '32/32',
        steps=checkpoint['meta']['iter'],
        crops=len(dataset) * checkpoint['meta']['epoch'] * crops_per_image(dataset),
        **{name: import_module(name).__version__ for name in VERSIONS})


def read_rows(file: Path) -> list:
    """Return the rows of a CSV file as dicts of strings; none where there is no file."""
    if not file.is_file():
        return []
    with file.open(newline='', encoding='utf-8') as stream:
        reader = csv.DictReader(stream)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise SystemExit(f'expected columns {",".join(COLUMNS)}, got {reader.fieldnames} in {file}; move it away')
        return list(reader)


def add_row(file: Path, row: dict) -> None:
    """Append a row; the file is whole at any time."""
    rows, partial = [*read_rows(file), row], file.with_suffix('.csv.partial')
    file.parent.mkdir(parents=True, exist_ok=True)
    with partial.open('w', newline='', encoding='utf-8') as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(file)


def make_table(folder: Path) -> str:
    """Return the markdown table of all families, with its caption; runs of another length get a line of their own."""
    lines = [HEADER, '|' + ' --- |' * (HEADER.count('|') - 1)]
    for family, facts in FAMILIES.items():
        groups = {}
        for row in read_rows(folder / f'{family}.csv'):
            key = facts['configs'].index(row['config']), int(row['steps']), int(row['crops'])
            groups.setdefault(key, []).append(row)
        for (place, steps, crops), rows in sorted(groups.items()):
            bits = f'[{rows[0]["bits"]}](configs/{family}/{facts["configs"][place]}.py)'
            minutes = mean(float(row['train_seconds']) for row in rows) / 60
            cells = [facts['data'], facts['model'], bits, *(spread([row[key] for row in rows]) for key in ACCURACIES),
                     len(rows), f'{steps:,}', f'{crops:,}', f'{minutes:.1f} min']
            lines.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join([*lines, '', CAPTION])


def spread(values: list) -> str:
    """Return mean and sample standard deviation of numbers as text, ``'98.00 ± 1.41'``."""
    numbers = [float(value) for value in values if value]
    deviation = f' ± {stdev(numbers):.2f}' if len(set(numbers)) > 1 else ''
    return f'{mean(numbers):.2f}{deviation}' if numbers else '–'


def report(args: argparse.Namespace) -> None:
    table = make_table(args.out)
    if not (args.write or args.check):
        print(table)
        return
    from vvq_mm.utils.marked_text import replace_marked  # here, since it takes seconds to import
    try:
        agrees = replace_marked(README, 'results', table, check=args.check)
    except OSError as error:
        raise SystemExit(str(error)) from error
    if args.check and not agrees:
        raise SystemExit(f'{README} differs from the rows in {args.out}: run `python tools/results.py report --write`')


if __name__ == '__main__':
    arguments = parse_args()
    {'run': run_family, 'report': report}[arguments.command](arguments)
