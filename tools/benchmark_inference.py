"""Measure exported files against full precision: latency, file size, peak memory, accuracy.

    python tools/benchmark_inference.py DIR/model.safetensors DIR/model.onnx [--batch-sizes 1 8] [--threads 1 2]
    python tools/benchmark_inference.py --random CONFIG [--sizes-only]      # its model with random weights
    python tools/benchmark_inference.py FILES --accuracy --config CONFIG [--float-checkpoint CHECKPOINT]
    python tools/benchmark_inference.py --report DIR/inference.json ... [--write README.md | --check README.md]

The files are those of one model. Its full-precision network is made from them and runs in PyTorch, ONNX Runtime and
OpenVINO, in float32 and bfloat16. All rows of a number of threads run in one process in interleaved rounds.
"""
import argparse
import fnmatch
import importlib
import json
import sys
import tempfile
from pathlib import Path

from mmengine.logging import MMLogger
from mmpretrain.utils import register_all_modules
from rich.console import Console
from tqdm import tqdm

from vvq_mm.benchmarks.float_reference import sort_files, write_float
from vvq_mm.benchmarks.inference import TestImages, in_fresh_process, measure, peak_memory_of
from vvq_mm.benchmarks.inference_bars import judge, judge_sizes
from vvq_mm.benchmarks.inference_plot import plot_inference
from vvq_mm.benchmarks.inference_report import compact_report, make_results, markdown_tables, terminal_tables
from vvq_mm.benchmarks.inference_rows import FP32, OURS, make_rows
from vvq_mm.benchmarks.libraries import find_libraries
from vvq_mm.benchmarks.random_model import write_random
from vvq_mm.benchmarks.report import bars_table, write_json
from vvq_mm.errors import QuantizationError
from vvq_mm.utils.launch import errors_in_a_sentence, existing_config
from vvq_mm.utils.marked_text import update_page

MARK = 'inference'
PACKAGES = ('onnxruntime', 'openvino')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='*', metavar='FILE', help='packed (.safetensors) and ONNX files of one model')
    parser.add_argument('--random', metavar='CONFIG', help="instead of FILES: export this config's model, not trained")
    parser.add_argument('--sizes-only', action='store_true', help='compare the sizes of the files and run nothing')
    parser.add_argument('--batch-sizes', nargs='+', type=int, default=[1, 8], help='images of a call (default: 1 8)')
    parser.add_argument('--threads', nargs='+', type=int, default=[1, 2], help='of the CPU (default: 1 2)')
    parser.add_argument('--rounds', type=int, default=20, help='timed calls of each row (default: 20)')
    parser.add_argument('--rows', nargs='+', metavar='PATTERN', default=['*'], help='globs on the names of the rows')
    parser.add_argument('--no-memory', action='store_true', help='leave out peak memory, a process per row and size')
    parser.add_argument('--accuracy', action='store_true', help='top-1 on the test images of --config')
    parser.add_argument('--config', help='config file of the training')
    parser.add_argument('--images', type=int, help='take that many test images (default: all)')
    parser.add_argument('--float-checkpoint', help='full-precision weights, for size and accuracy of the FP32 rows '
                                                   '(default: the dequantised ones, and no accuracy)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark_inference'),
                        help='folder of JSON, table and plot')
    parser.add_argument('--report', nargs='+', type=Path, metavar='JSON', help='measure nothing, make the short tables')
    action = parser.add_mutually_exclusive_group()
    action.add_argument('--write', metavar='FILE', help='put the short tables between the marks in a file')
    action.add_argument('--check', metavar='FILE', help='exit with 1 if the tables in a file are others')
    args = parser.parse_args()
    if (args.write or args.check) and not args.report:
        parser.error('--write and --check need --report JSON')
    if sum(map(bool, (args.files, args.random, args.report))) != 1:
        parser.error('expected exported files, --random CONFIG, or --report JSON')
    if args.accuracy and not args.config:
        parser.error('--accuracy needs --config CONFIG')
    if min(*args.batch_sizes, *args.threads, args.rounds) < 1:
        parser.error('expected positive numbers for --batch-sizes, --threads and --rounds')
    return args


def report(args: argparse.Namespace) -> None:
    tables = compact_report([json.loads(path.read_text(encoding='utf-8')) for path in args.report])
    if not update_page(MARK, tables, args.report, args.write, args.check):
        print(tables)


def benchmark(args: argparse.Namespace) -> None:
    register_all_modules()
    MMLogger.get_instance('benchmark', log_level='ERROR')
    console = Console(stderr=True)
    config = existing_config(args.config) if args.accuracy else None
    libraries, precision = find_libraries()
    with tempfile.TemporaryDirectory() as folder:
        if args.random:
            with console.status('writing a model with random weights'):
                args.files = write_random(existing_config(args.random), Path(folder))
        packed, onnx, description = sort_files(args.files)
        with console.status('writing the full-precision network'):
            floats = write_float(description, Path(folder), packed[0] if packed else None, args.float_checkpoint)
        bars = judge_sizes(packed, onnx, floats, description)
        if args.sizes_only:
            show([], bars, {}, args.out)
            return
        rows = [row for row in make_rows(floats, packed, onnx, libraries)
                if any(fnmatch.fnmatchcase(row.name, pattern) for pattern in args.rows)]
        if not any(row.group == FP32 for row in rows):
            raise QuantizationError("expected a full-precision row to compare with, got none; add '*FP32*' to --rows")
        measured, memory = measure_all(args, rows, description, config)
        results = make_results(rows, measured, memory)
    skipped = {f'FP32 ONNX, opset {opset}': why for opset, why in floats.skipped.items()}
    for part in measured.values():
        skipped.update(part.skipped)
    bars += judge(rows, measured[1], description) if 1 in measured else []
    settings = dict(model=model_name(description, args.files), files=[Path(path).name for path in args.files],
                    input_shape=description['input_shape'], batch_sizes=args.batch_sizes, threads=args.threads,
                    rounds=args.rounds, versions=versions(), libraries=libraries, precision=precision,
                    config=config and Path(config).stem, images=args.images,
                    float_checkpoint=args.float_checkpoint and Path(args.float_checkpoint).name)
    write_all(args.out, results, settings, bars, skipped)
    show(results, bars, skipped, args.out)


def measure_all(args: argparse.Namespace, rows: list, description: dict, config: str) -> tuple:
    """Return what was measured by number of threads, and peak memory by row and batch size."""
    shape, measured, memory = description['input_shape'], {}, {}
    names = [row.name for row in rows if row.group == OURS or args.float_checkpoint]
    test_images = config and TestImages(config, description['model'].get('data_preprocessor') or {}, args.images, names)
    for threads in dict.fromkeys(args.threads):
        measured[threads] = in_fresh_process(measure, rows, shape, args.batch_sizes, threads, args.rounds, test_images)
        test_images = None  # the same for all numbers of threads
    run = [row for row in rows if all(row.name not in part.skipped for part in measured.values())]
    todo = [] if args.no_memory else [(row, size) for row in run for size in args.batch_sizes]
    for row, size in tqdm(todo, desc='peak memory', leave=False, disable=not todo):
        memory[row.name, size] = in_fresh_process(peak_memory_of, row, shape, size)
    return measured, memory


def model_name(description: dict, files: list) -> str:
    """Return the name of the first file and the size of its images."""
    return f'{Path(files[0]).stem}, {description["input_shape"][-1]} px'


def versions() -> dict:
    """Return the versions of the runtimes that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.import_module(name).__version__.split('-')[0]
        except ImportError:
            pass  # its rows are left out, which is said there
    return found


def write_all(out: Path, results: list, settings: dict, bars: list, skipped: dict) -> None:
    write_json(out / 'inference.json', results, settings, bars=bars, skipped=skipped)
    tables = [markdown_tables(results), *([bars_table(bars)] if bars else [])]
    (out / 'inference.md').write_text('\n\n'.join(tables) + '\n', encoding='utf-8')
    accuracy = '; top-1 accuracy after the time' if any(result['accuracy'] is not None for result in results) else ''
    plot_inference(results, out / 'inference.png', subtitle=f'{settings["model"]}; of each runtime the fastest '
                                                            f'FP32 and BF16 row{accuracy}')


def show(results: list, bars: list, skipped: dict, out: Path) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in terminal_tables(results):
        console.print(table)
    for bar in bars:
        met = {True: 'met    ', False: 'NOT MET', None: '       '}[bar['met']]
        limit = f' ({bar["bound"]} {bar["limit"]})' if bar['limit'] else ''
        console.print(f'{met} {bar["what"]}: {bar["measured"]:.4f}{limit}', highlight=False)
    for name, why in skipped.items():
        console.print(f'{name} left out: {why}', markup=False, highlight=False)
    if results:
        console.print(f'written to {out}', highlight=False)


if __name__ == '__main__':
    arguments = parse_args()
    with errors_in_a_sentence():
        (report if arguments.report else benchmark)(arguments)
