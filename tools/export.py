"""Export a trained checkpoint: write files, compare them with the trained network, and say what they are.

    python tools/export.py configs/digits/vit_w2a2.py work_dirs/vit_w2a2/epoch_24.pth --format packed onnx --out exported
"""
import argparse
import sys
from pathlib import Path

from mmengine.config import Config, DictAction
from rich.console import Console
from rich.table import Table

from vvq_mm.export import export
from vvq_mm.export.onnx_export import DEFAULT_OPSET
from vvq_mm.export.write import FORMATS, LEAST_IMAGES, SUMMARY
from vvq_mm.utils.launch import errors_in_a_sentence, existing_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', help='config file of the training')
    parser.add_argument('checkpoint', help='checkpoint that it gave')
    parser.add_argument('--format', nargs='+', choices=list(FORMATS), default=['packed'], help='what to write')
    parser.add_argument('--out', required=True, help='folder for the files; new or empty')
    parser.add_argument('--images', type=int, default=LEAST_IMAGES, help='test images to compare on')
    parser.add_argument('--opset', type=int, default=DEFAULT_OPSET,
                        help=f'version of the operators of ONNX; {DEFAULT_OPSET} by default')
    parser.add_argument('--force', action='store_true', help='replace files of the same names in a folder with files')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings of the config')
    return parser.parse_args()


def show(summary: dict, out: Path) -> None:
    """Print sizes, parity and what stays in float."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    sizes = summary['sizes']
    table = Table(title=f'{sizes["float32"] / 1e6:.2f} MB in float32; {sizes["theory"] / 1e6:.2f} MB with every quantised '
                        'weight at its width')
    for column in ('file', 'MB', 'of float32', 'of theory'):
        table.add_column(column, justify='left' if column == 'file' else 'right')
    for entry in summary['files'].values():
        table.add_row(entry['file'], f'{entry["bytes"] / 1e6:.2f}', f'{entry["over_float32"]:.3f}',
                      f'{entry["over_theory"]:.3f}')
    console.print(table)
    table = Table(title=f'Compared with the trained network on {summary["images"]}')
    for column in ('file in runtime', 'same class', 'largest / mean difference of logits', 'codes that differ',
                   'integer products'):
        table.add_column(column, justify='left' if column == 'file in runtime' else 'right')
    for entry in summary['files'].values():
        for backend, parity in entry['parity'].items():
            products = entry['integer_products'].get(backend)
            table.add_row(
                f'{entry["file"]} in {backend}', f'{parity["agreement"]:.2f} %',
                f'{parity["max_difference"]:.3g} / {parity["mean_difference"]:.3g}',
                f'{parity["differing_codes"]:,} of {parity["codes"]:,}' if parity['codes'] else 'not readable',
                f'{products["integer"]} of {products["all"]}' if products else 'simulated')
    console.print(table)
    for backend, products in ((backend, products) for entry in summary['files'].values()
                              for backend, products in entry['integer_products'].items()):
        for name, kernel in products['others'].items():
            console.print(f'in float in {backend}: {name} ({kernel})', highlight=False)
    console.print('In float: ' + '; '.join(f'{name} ({reason})' for name, reason in summary['float'].items()),
                  highlight=False, markup=False)
    console.print(f'written to {out}, all figures in {out / SUMMARY}', highlight=False)


def main() -> None:
    args = parse_args()
    with errors_in_a_sentence():
        cfg = Config.fromfile(existing_config(args.config))
        if args.cfg_options is not None:
            cfg.merge_from_dict(args.cfg_options)
        show(export(cfg, args.checkpoint, args.out, args.format, args.images, args.opset, args.force), Path(args.out))


if __name__ == '__main__':
    main()
