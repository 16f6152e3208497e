"""How far magnitudes, tails and outliers differ between modules, channels and heads, for several models side by side.

    python tools/analysis/variation.py MODEL [MODEL ...] --out DIR

A MODEL is CONFIG, timm:NAME or mmpretrain:NAME, with =CHECKPOINT behind it for its weights; without, they are random:

    python tools/analysis/variation.py configs/fashion_mnist/deit_fp32.py=work_dirs/deit_fp32/epoch_30.pth timm:resnet18

A CONFIG is shown images of its own val_dataloader, a NAME generated ones (normal noise) unless --data gives others.
"""
import argparse
import json
import math
import sys
from collections import Counter
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import List, NamedTuple, Optional, Tuple

import mmengine
import mmpretrain
import timm
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmpretrain.utils import register_all_modules
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from tqdm import tqdm

import vvq_mm  # makes vvq_mm:: bases known
from vvq_mm.analysis.variation import SIGMA, measure
from vvq_mm.errors import QuantizationError
from vvq_mm.plots.variation import head_values, plot_channels, plot_heads, plot_magnitude, plot_tails, short_name
from vvq_mm.utils.evaluate import build_batches, build_model, calibration_images
from vvq_mm.utils.launch import errors_in_a_sentence, existing_config
from vvq_mm.utils.teacher import load_weights

GENERATED = 'generated'
ZOOS = dict(timm=timm.list_models, mmpretrain=mmpretrain.list_models)
VERSIONS = dict(vvq_mm=vvq_mm.__version__, torch=torch.__version__, mmengine=mmengine.__version__,
                mmpretrain=mmpretrain.__version__, timm=timm.__version__)


class Source(NamedTuple):
    """Where a model comes from: ``zoo`` is timm, mmpretrain, or None for a config; ``checkpoint`` None: random."""

    zoo: Optional[str]
    name: str
    checkpoint: Optional[str]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='+', metavar='MODEL', help='see above')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/variation'), help='folder of JSON and pictures')
    parser.add_argument('--data', metavar='CONFIG', help=f'whose images all models see, or `{GENERATED}`; they are '
                        'resized to what a model takes')
    parser.add_argument('--split', choices=['val', 'train', 'test'], default='val', help='data loader (default: val)')
    parser.add_argument('--images', type=int, default=128, help='spread evenly over the data set (default: 128)')
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--img-size', type=int, help='side of generated or resized images (default: what the model '
                        'says, or 224)')
    parser.add_argument('--sigma', type=float, default=SIGMA, help='standard deviations from the mean beyond which a '
                        f'value is an outlier (default: {SIGMA:g})')
    return parser.parse_args()


def parse_model(text: str) -> Source:
    """Return what a MODEL of the command line names; an unknown name ends in an error with near ones."""
    source, _, checkpoint = (text, '', '') if Path(text).is_file() else text.partition('=')
    zoo, _, name = source.partition(':')
    if zoo in ZOOS:
        known = ZOOS[zoo]()
        if name not in known and not (zoo == 'timm' and name.split('.')[0] in known):
            near = ', '.join(f'{zoo}:{other}' for other in get_close_matches(name, known, n=3, cutoff=0.4))
            raise QuantizationError(f'expected the name of a model that {zoo} has, got {name!r}; '
                                    f'near ones: {near or "none"}')
    elif Path(source).suffix != '.py' and not Path(source).is_file():
        near = [f'{zoo}:{other}' for zoo, names in ZOOS.items() for other in get_close_matches(source, names(), n=2)]
        raise QuantizationError('expected CONFIG, timm:NAME or mmpretrain:NAME, each with =CHECKPOINT behind it or '
                                f'not, got {text!r}; near ones: {", ".join(near) or "none"}')
    return Source(zoo, name, checkpoint or None) if zoo in ZOOS else Source(None, existing_config(source),
                                                                            checkpoint or None)


def build(source: Source) -> Tuple[nn.Module, Optional[Config]]:
    """Return the model in eval mode, and the config that it is from."""
    if source.zoo is None:
        cfg = Config.fromfile(source.name)
        return build_model(cfg, source.checkpoint), cfg
    make = dict(timm=timm.create_model, mmpretrain=mmpretrain.get_model)[source.zoo]
    model = make(source.name)
    if source.checkpoint:
        load_weights(model, source.checkpoint)
    model.eval()
    return model, None


def input_shape(model: nn.Module, side: Optional[int]) -> Tuple[int, int, int]:
    """Return channels, height and width of the images that a model takes."""
    backbone = getattr(model, 'backbone', model)
    channels = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)
    own = getattr(backbone, 'img_size', None) or getattr(backbone, 'default_cfg', {}).get('input_size', (3, 224))[1:]
    own = side or own
    return (channels, own, own) if isinstance(own, int) else (channels, own[0], own[-1])


def fit(images: Tensor, shape: Tuple[int, int, int]) -> Tensor:
    """Return images (B, C, H, W) of another number of channels, grey to colour or back, and another size."""
    if images.shape[1] != shape[0]:
        images = images.mean(1, keepdim=True).expand(-1, shape[0], -1, -1)
    if images.shape[2:] != shape[1:]:
        images = F.interpolate(images, shape[1:], mode='bilinear', antialias=True)
    return images


def find_images(model: nn.Module, cfg: Optional[Config], args: argparse.Namespace) -> Tuple[List[Tensor], str]:
    """Return batches as the model takes them, and words on where they are from."""
    shape = input_shape(model, args.img_size)
    if args.data == GENERATED or (args.data is None and cfg is None):
        images = torch.randn(args.images, *shape, generator=torch.Generator().manual_seed(0))
        return list(images.split(args.batch_size)), f'{args.images} generated images, normal noise'
    shown = cfg if args.data is None else Config.fromfile(existing_config(args.data))
    loader = shown.get(f'{args.split}_dataloader')
    if loader is None:
        raise QuantizationError(f'expected a {args.split}_dataloader in {shown.filename}, got none; choose another '
                                f'--split, or images by --data CONFIG or --data {GENERATED}')
    batches = build_batches(loader, args.images, args.batch_size)
    reader = model if hasattr(model, 'data_preprocessor') else build_model(shown)
    images = calibration_images(reader, tqdm(batches, 'reading images', leave=False), len(batches))
    words = f'{len(batches.dataset)} images of {args.split}_dataloader of {shown.filename}'
    if args.data is None:
        return images, words
    size = 'x'.join(map(str, shape))
    return [fit(batch, shape) for batch in images], words + f', resized to {size}'


def analyse(source: Source, label: str, args: argparse.Namespace) -> dict:
    """Return the variation of one model, with all that it depends on."""
    model, cfg = build(source)
    pretrained = cfg is not None and cfg.model.get('pretrained') is True  # timm's own
    weights = source.checkpoint or ("timm's pretrained weights" if pretrained else 'random weights')
    images, words = find_images(model, cfg, args)
    remarks = [remark for remark, holds in {'random weights': weights == 'random weights',
                                            'generated images': 'generated' in words}.items() if holds]
    name = f'{label} ({", ".join(remarks)})' if remarks else label
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    report = measure(model.to(device), [batch.to(device) for batch in images], args.sigma,
                     lambda batches, step: tqdm(batches, f'{label}: {step}', leave=False))
    text = None if cfg is None else cfg.pretty_text
    return dict(name=name, source=':'.join(filter(None, source[:2])), weights=weights, images=words, config=text,
                **report)


def labels(sources: List[Source]) -> List[str]:
    """Return a short name for each model; those that share one are told apart by their checkpoints."""
    short = [Path(source.name).stem if source.zoo is None else source.name for source in sources]
    count = Counter(short)
    return [f'{name} {"/".join(Path(source.checkpoint or "-").parts[-2:])}' if count[name] > 1 else name
            for name, source in zip(short, sources)]


def summary(models: List[dict]) -> Table:
    """One row per model and kind of tensor."""
    table = Table(title='Spread over modules')
    for column in ('model', 'of', 'modules', 'mean |x|', 'SDAM', 'SDAM / mean', 'median kurtosis', 'highest kurtosis',
                   'most outliers'):
        table.add_column(column, justify='left' if column in ('model', 'of') else 'right', overflow='fold')
    for model in models:
        for slot, words in dict(weight='weights', input='inputs').items():
            known = model['sdam'][slot]
            sites = [site for site in model['sites'] if site['slot'] == slot and math.isfinite(site['kurtosis'])]
            sites.sort(key=lambda site: site['kurtosis'])
            most = max(sites, key=lambda site: site['outliers'], default=None)
            table.add_row(model['name'], words, str(known['modules']), f'{known["mean"]:.4g}', f'{known["sdam"]:.4g}',
                          f'{known["relative"]:.0%}', *(
                              (f'{sites[len(sites) // 2]["kurtosis"]:.3g}',
                               f'{sites[-1]["kurtosis"]:.3g} {short_name(sites[-1]["module"])}',
                               f'{most["outliers"]:.2%} {short_name(most["module"])}') if sites else ('-', ) * 3))
    return table


def site_table(model: dict) -> Table:
    """One row per slot of a module."""
    table = Table(title=f'{model["name"]}: {model["weights"]}; {model["images"]}; {model["forward"]} forward')
    columns = ('module', 'slot', 'mean |x|', 'std', 'kurtosis', f'beyond {model["sigma"]:g} std', 'largest channel',
               'heads, mean |x|')
    for column in columns:
        table.add_column(column, justify='left' if column in ('module', 'slot') else 'right', overflow='fold')
    for site in model['sites']:
        channels, heads = site['channels'], site['heads']
        table.add_row(site['module'], site['slot'], f'{site["magnitude"]:.4g}', f'{site["std"]:.4g}',
                      f'{site["kurtosis"]:.3g}', f'{site["outliers"]:.2%}',
                      f'{channels["magnitude"][-1] / (channels["magnitude"][3] or math.nan):.3g} x median'
                      if channels else '',
                      f'{min(heads["magnitude"]):.3g} to {max(heads["magnitude"]):.3g}' if heads else '')
    return table


def plain(value):
    """Return the same data with None for numbers that JSON has not: a constant tensor's kurtosis."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run(args: argparse.Namespace) -> None:
    register_all_modules()
    for option, number in dict(images=args.images, batch_size=args.batch_size, sigma=args.sigma).items():
        if number <= 0:
            raise QuantizationError(f'expected --{option.replace("_", "-")} above 0, got {number}')
    sources = [parse_model(text) for text in args.models]
    models = [analyse(source, label, args) for source, label in zip(sources, labels(sources))]
    console = Console(width=None if sys.stdout.isatty() else 150)
    for model in models:
        console.print(site_table(model))
        if model['unused']:
            console.print(f'never run, left out: {", ".join(islice(model["unused"], 6))}')
    console.print(summary(models))
    for note in sorted({remark for model in models for remark in ('random weights', 'generated images')
                        if remark in model['name']}):
        console.print(f'Some models have {note}: their rows say nothing about trained models on real data.')
    args.out.mkdir(parents=True, exist_ok=True)
    report = plain(dict(tool='variation', versions=VERSIONS, models=models))
    (args.out / 'variation.json').write_text(json.dumps(report, indent=1, allow_nan=False))
    pictures = dict(magnitude=plot_magnitude, tails=plot_tails, channels=plot_channels)
    if any(head_values(model, 'magnitude') for model in models):
        pictures['heads'] = plot_heads
    for name, plot in pictures.items():
        plot(report['models'], args.out / f'{name}.png')
    console.print(f'written to {args.out}: variation.json, {", ".join(f"{name}.png" for name in pictures)}')


if __name__ == '__main__':
    arguments = parse_args()
    with errors_in_a_sentence():
        run(arguments)
