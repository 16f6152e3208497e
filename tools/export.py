"""Export a trained checkpoint: write files, compare them with the trained network, and say what they are.

    python tools/export.py configs/digits/vit_w2a2.py work_dirs/vit_w2a2/epoch_24.pth --format packed onnx --out exported
    python tools/export.py --report exported/export.json ... [--write PAGE.md | --check PAGE.md]
"""
import argparse
import json
import sys
from pathlib import Path

from mmengine.config import Config, DictAction
from rich.console import Console
from rich.table import Table

from vvq_mm.export import BACKENDS, export
from vvq_mm.export.onnx_export import DEFAULT_OPSET
from vvq_mm.export.write import FORMATS, LEAST_IMAGES, SUMMARY
from vvq_mm.utils.launch import errors_in_a_sentence, existing_config
from vvq_mm.utils.marked_text import update_page

COLUMNS = ('file', 'MB', 'of FP32', 'of theory', 'in', 'same class, %', 'top-1, %', 'trained, %',
           'largest / mean difference', 'codes that differ', 'integer products')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?', help='config file of the training')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint that it gave')
    parser.add_argument('--format', nargs='+', choices=list(FORMATS), default=['packed'], help='what to write')
    parser.add_argument('--out', help='folder for the files; new or empty')
    parser.add_argument('--images', type=int, default=LEAST_IMAGES,
                        help=f'test images to compare on, at least {LEAST_IMAGES} (default: {LEAST_IMAGES})')
    parser.add_argument('--backends', nargs='+', choices=list(BACKENDS),
                        help='compare in these (default: all that are installed but the integer engine)')
    parser.add_argument('--opset', type=int, default=DEFAULT_OPSET,
                        help=f'version of the operators of ONNX (default: {DEFAULT_OPSET})')
    parser.add_argument('--force', action='store_true', help='replace files of the same names in a folder with files')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings of the config')
    parser.add_argument('--report', nargs='+', type=Path, metavar='JSON', help='write nothing, make a table')
    action = parser.add_mutually_exclusive_group()
    action.add_argument('--write', type=Path, metavar='PAGE', help='put the table between the marks in a page')
    action.add_argument('--check', type=Path, metavar='PAGE', help='exit with 1 if the table in a page is another')
    args = parser.parse_args()
    if bool(args.report) == bool(args.checkpoint) or bool(args.report) == bool(args.out):
        parser.error('expected CONFIG CHECKPOINT --out DIR, or --report JSON')
    return args


def rows(summary: dict) -> list:
    """Return a row in words for each file and runtime."""
    found = []
    for entry in summary['files'].values():
        for backend, parity in entry['parity'].items():
            products = entry['integer_products'].get(backend)
            accuracies = ['' if value is None else f'{value:.2f}'
                          for value in (parity['accuracy'], parity['model_accuracy'])]
            found.append((
                entry['file'], f'{entry["bytes"] / 1e6:.2f}', f'{entry["over_float32"]:.3f}',
                f'{entry["over_theory"]:.2f}', backend, f'{parity["agreement"]:.2f}', *accuracies,
                f'{parity["max_difference"]:.2g} / {parity["mean_difference"]:.1g}',
                f'{parity["differing_codes"]:,} of {parity["codes"]:,}' if parity['codes'] else 'not read',
                f'{products["integer"]} of {products["all"]}' if products else 'simulated'))
    return found


def show(summary: dict, out: Path) -> None:
    """Print sizes, parity and what stays in float."""
    console = Console(width=None if sys.stdout.isatty() else 180)
    sizes = summary['sizes']
    table = Table(title=f'{sizes["float32"] / 1e6:.2f} MB in float32, {sizes["theory"] / 1e6:.2f} MB with every weight at its '
                        f'width; compared with the trained network on {summary["images"]}')
    for column in COLUMNS:
        table.add_column(column, justify='left' if column in ('file', 'in') else 'right', overflow='fold')
    for row in rows(summary):
        table.add_row(*row)
    console.print(table)
    for entry in summary['files'].values():
        for backend, products in entry['integer_products'].items():
            for name, kernel in products['others'].items():
                console.print(f'not on integers in {backend}: {name} ({kernel})', highlight=False, markup=False)
    for name, reason in summary['float'].items():
        console.print(f'in float: {name} ({reason})', highlight=False, markup=False)
    console.print(f'written to {out}, all figures in {out / SUMMARY}', highlight=False)


def report(args: argparse.Namespace) -> None:
    lines = [COLUMNS, [':--' if column in ('file', 'in') else '--:' for column in COLUMNS]]
    for path in args.report:
        lines += rows(json.loads(path.read_text(encoding='utf-8')))
    passage = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
    if not update_page('export', passage, args.report, args.write, args.check):
        print(passage)


def main() -> None:
    args = parse_args()
    with errors_in_a_sentence():
        if args.report:
            report(args)
            return
        cfg = Config.fromfile(existing_config(args.config))
        if args.cfg_options is not None:
            cfg.merge_from_dict(args.cfg_options)
        show(export(cfg, args.checkpoint, args.out, args.format, args.images, args.opset, args.force, args.backends),
             Path(args.out))


if __name__ == '__main__':
    main()
