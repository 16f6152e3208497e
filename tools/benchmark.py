"""Measure training steps against full precision: time, memory kept for backward, peak memory, images per second.

    python tools/benchmark.py [CONFIG] [--device cuda] [--threads 2] [--rows 'FP32*' '*everything on'] [--out DIR]
    python tools/benchmark.py --report DIR/benchmark.json ... [--write README.md | --check README.md]

All rows run in one process in interleaved rounds: random images, random stored soft labels, DropPath 0, fused AdamW.
"""
import argparse
import fnmatch
import json
import os
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # read at import: the profiler, which adds up memory, reports to stderr
import torch
from mmengine.logging import MMLogger
from mmpretrain.utils import register_all_modules
from rich.console import Console

from vvq_mm.benchmarks import (interleaved, keep_freed_memory, limits, measure_rates, peak_memory, saved_bytes,
                               step_work)
from vvq_mm.benchmarks.bars import Measured, find_references, judge
from vvq_mm.benchmarks.libraries import find_libraries, use_library
from vvq_mm.benchmarks.plot import plot_results
from vvq_mm.benchmarks.report import bars_table, compact_report, markdown_table, row, terminal_table, write_json
from vvq_mm.benchmarks.training import Workload
from vvq_mm.benchmarks.variants import make_variants
from vvq_mm.errors import QuantizationError
from vvq_mm.utils.launch import errors_in_a_sentence, existing_config
from vvq_mm.utils.marked_text import update_page

CONFIGS = Path(__file__).resolve().parents[1] / 'configs' / 'vvq'
DEFAULTS = dict(cpu=dict(config=str(CONFIGS / 'deit_t_w4a4.py'), batch_size=8),
                cuda=dict(config=str(CONFIGS / 'deit_b_w4a4.py'), batch_size=128))
MARK = 'benchmark'
GRAPHS = 256  # compiled rows share the code of `loss`, and each is a graph of its own


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?', help='config file (default: DeiT-T W4A4 on a CPU, DeiT-B W4A4 on a GPU)')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--batch-size', type=int, help='images of a step (default: 8 on a CPU, 128 on a GPU)')
    parser.add_argument('--threads', type=int, default=1, help='of PyTorch on the CPU (default: 1)')
    parser.add_argument('--rounds', type=int, default=20, help='timed steps of each row (default: 20)')
    parser.add_argument('--rows', nargs='+', metavar='PATTERN', default=['*'], help='globs on the names of the rows')
    parser.add_argument('--depth', type=int, help='keep only so many blocks, for a quick look')
    parser.add_argument('--image-size', type=int, help="edge of the images (default: the config's)")
    parser.add_argument('--backend', default='inductor', help='of torch.compile (default: inductor)')
    parser.add_argument('--roofline', action='store_true', help='measure the roofline on a CPU too')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark'), help='folder of JSON, table and plot')
    parser.add_argument('--report', nargs='+', type=Path, metavar='JSON', help='measure nothing, make the short tables')
    action = parser.add_mutually_exclusive_group()
    action.add_argument('--write', metavar='FILE', help='put the short tables between the marks in a file')
    action.add_argument('--check', metavar='FILE', help='exit with 1 if the tables in a file are others')
    args = parser.parse_args()
    if (args.write or args.check) and not args.report:
        parser.error('--write and --check need --report JSON')
    for name, value in DEFAULTS[args.device].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def report(args: argparse.Namespace) -> None:
    tables = compact_report([json.loads(path.read_text(encoding='utf-8')) for path in args.report])
    if not update_page(MARK, tables, args.report, args.write, args.check):
        print(tables)


def prepare(device: str, threads: int) -> dict:
    """Set what all rows share for the rest of the process, and return it in words for the settings."""
    torch.set_num_threads(threads)
    if device == 'cuda':
        torch.backends.cudnn.allow_tf32 = False  # of the patch embedding; products are without it anyway
    for name in ('recompile_limit', 'accumulated_recompile_limit'):
        setattr(torch._dynamo.config, name, GRAPHS)
    settings = dict(drop_path=0.0, optimizer='AdamW, fused', soft_labels='stored, random',
                    keeps_freed_memory=keep_freed_memory())
    libraries, why = (['MKL'], 'Without TF32.') if device == 'cuda' else find_libraries()
    return dict(settings, libraries=libraries, precision=why)


def build_rows(workload: Workload, variants: list, console: Console) -> tuple:
    """Return the steps that run, measured memory by row, and why other rows do not run."""
    steps, memory, skipped = {}, {}, {}
    for number, variant in enumerate(variants, start=1):
        began = time.perf_counter()
        try:
            step = workload.step(variant)
            step()
            saved = saved_bytes(step.forward, step.constants())
            memory[variant.name] = dict(saved_bytes=saved, peak_bytes=peak_memory(step, workload.device))
            steps[variant.name] = step
            words = f'{saved / 2**20:,.0f} MiB saved for backward'
        except (ImportError, QuantizationError, torch.OutOfMemoryError) as error:
            skipped[variant.name] = words = f'left out: {str(error).splitlines()[0]}'
        step = None
        console.print(f'[{number}/{len(variants)}] {variant.name}: {words} ({time.perf_counter() - began:.0f} s)',
                      markup=False, highlight=False)
    return steps, memory, skipped


def roofline(workload: Workload, dtype: torch.dtype, library: str, size: int = None) -> dict:
    """Return the work of a step, what the device reaches, and the shortest times that follow."""
    work = step_work(workload.quantised('ours').eval(), workload.images[:1], len(workload.images))
    if workload.device == 'cpu':
        use_library(library)
    rates = measure_rates(workload.device, size=size)
    return dict(work=work._asdict(), rates=rates._asdict(), limits=limits(work, rates, dtype),
                quantiser_bytes={name: work.quantiser_bytes(dtype.itemsize, fused=name == 'fused')
                                 for name in ('separate', 'fused')})


def make_results(rows: dict, memory: dict, references, batch: int) -> list:
    """Return the rows of the report; a compiled one also has its ratio to the compiled full-precision step."""
    results, reference = [], rows[references.step].timing
    for name, measured in rows.items():
        result = row(name, measured.variant.group, measured.timing, reference, batch, **memory[name])
        if measured.variant.compiled and references.compiled and references.compiled != references.step:
            ratio = measured.timing.over(rows[references.compiled].timing).median
            result.update(ratio_to_compiled=ratio, note=f'{ratio:.2f} × compiled')
        results.append(dict(result, tracker_bytes=measured.tracker_bytes))
    return results


def benchmark(args: argparse.Namespace) -> None:
    cuda, console = args.device == 'cuda', Console(stderr=True)
    if cuda and not torch.cuda.is_available():
        raise QuantizationError('expected a CUDA device for --device cuda, PyTorch sees none; leave --device out to '
                                'measure on the CPU')
    register_all_modules()
    MMLogger.get_instance('benchmark', log_level='ERROR')
    warnings.filterwarnings('ignore')  # of other libraries; what is left out is said
    settings = prepare(args.device, args.threads)
    console.print(settings['precision'], highlight=False)
    variants = [variant for variant in make_variants(cuda, settings['libraries'])
                if any(fnmatch.fnmatchcase(variant.name, pattern) for pattern in args.rows)]
    if not any(variant.model == 'float' for variant in variants):
        raise QuantizationError("expected a full-precision row to compare with, got none; add 'FP32*' to --rows")
    workload = Workload(existing_config(args.config), args.batch_size, args.device, args.depth, args.image_size,
                        args.backend)
    steps, memory, skipped = build_rows(workload, variants, console)
    timings = interleaved(steps, args.rounds, device=args.device)
    rows = {name: Measured(step.variant, timings[name], memory[name]['saved_bytes'], step.tracker_bytes())
            for name, step in steps.items()}
    references = find_references(rows, cuda)
    results, bars = make_results(rows, memory, references, args.batch_size), judge(rows, references, cuda)
    settings.update(config=Path(args.config).stem, image_size=workload.image_size, batch_size=args.batch_size,
                    rounds=args.rounds, depth=args.depth, backend=args.backend, references=references._asdict())
    blocks = dict(bars=bars, skipped=skipped)
    if cuda or args.roofline:
        blocks['roofline'] = roofline(workload, torch.bfloat16 if cuda else torch.float32, settings['libraries'][0])
    write_all(args.out, results, settings, args.device, blocks)
    show(results, settings, blocks, args.out)


def write_all(out: Path, results: list, settings: dict, device: str, blocks: dict) -> None:
    write_json(out / 'benchmark.json', results, settings, device, **blocks)
    (out / 'benchmark.md').write_text(f'{markdown_table(results)}\n\n{bars_table(blocks["bars"])}\n', encoding='utf-8')
    subtitle = (f'{settings["config"]}, batch {settings["batch_size"]}, {device}; 1.00 is '
                f'{settings["references"]["step"]}')
    plot_results(results, out / 'benchmark.png', subtitle=subtitle)


def show(results: list, settings: dict, blocks: dict, out: Path) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(terminal_table(results, f'1.00 is {settings["references"]["step"]}'))
    for bar in blocks['bars']:
        console.print(f'{"met   " if bar["met"] else "NOT MET"} {bar["what"]}: {bar["measured"]:.3f} '
                      f'({bar["bound"]} {bar["limit"]})', highlight=False)
    for name, why in blocks['skipped'].items():
        console.print(f'{name} {why}', markup=False, highlight=False)
    for name, seconds in blocks.get('roofline', {}).get('limits', {}).items():
        console.print(f'roofline, {name}: at least {seconds * 1000:,.2f} ms', highlight=False)
    console.print(f'written to {out}', highlight=False)


if __name__ == '__main__':
    arguments = parse_args()
    with errors_in_a_sentence():
        (report if arguments.report else benchmark)(arguments)
