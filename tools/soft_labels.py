"""Make, check and convert stores of soft labels.

    python tools/soft_labels.py make CONFIG CHECKPOINT --out DIR --num-crops 500 [--teacher NAME|CONFIG|timm:NAME]
    python tools/soft_labels.py verify DIR [--config CONFIG]
    python tools/soft_labels.py convert-fkd CONFIG ROOT --out DIR [--format marginal_smoothing_k5]

CONFIG names the data set: the one that its train_dataloader reads, without augmentation.
"""
import argparse
import json
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS
from rich.progress import track

from vvq_mm.datasets import CropSettings, SoftLabelStore, convert_fkd, make_soft_labels
from vvq_mm.datasets.fingerprint import dataset_classes, dataset_fingerprint
from vvq_mm.datasets.fkd import FORMATS
from vvq_mm.datasets.soft_label_store import META
from vvq_mm.datasets.teacher_probabilities import input_size, teacher_probabilities
from vvq_mm.utils.launch import errors_in_a_sentence, existing_config
from vvq_mm.utils.teacher import build_teacher


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)

    default = CropSettings()
    make = commands.add_parser('make', help='ask a teacher about random crops of every training image')
    make.add_argument('config', help='config file of the data set, and of the teacher unless --teacher is given')
    make.add_argument('checkpoint', help='weights of the teacher')
    make.add_argument('--teacher', help='config file, model name of MMPretrain, or timm:NAME')
    make.add_argument('--num-crops', type=int, default=500, help='crops per image')
    make.add_argument('--topk', type=int, default=5, help='probabilities kept per crop')
    make.add_argument('--temperature', type=float, default=1.0, help="divides the teacher's logits")
    make.add_argument('--size', type=int, help="side of the teacher's crops in pixels (default: its own, or 224)")
    make.add_argument('--scale', type=float, nargs=2, default=default.scale, help='smallest and largest area')
    make.add_argument('--ratio', type=float, nargs=2, default=default.ratio, help='smallest and largest width / height')
    make.add_argument('--flip-prob', type=float, default=0.5, help='probability of mirroring; 0 for digits and letters')
    make.add_argument('--interpolation', default=default.interpolation)
    make.add_argument('--batch-size', type=int, default=256, help='crops per forward pass of the teacher')
    make.add_argument('--num-workers', type=int, default=0, help='processes that read images')
    make.add_argument('--seed', type=int, default=0)
    make.add_argument('--device', default=get_device())

    verify = commands.add_parser('verify', help='check every checksum of a store')
    verify.add_argument('store', help='folder of the store')
    verify.add_argument('--config', help='also check that the store was made for the data set of this config')

    convert = commands.add_parser('convert-fkd', help='write official FKD files as a store, running nothing in them')
    convert.add_argument('config', help='config file of the data set')
    convert.add_argument('root', help='folder of the FKD files')
    convert.add_argument('--format', default='marginal_smoothing_k5', choices=sorted(FORMATS))
    convert.add_argument('--num-crops', type=int, help='keep the first so many of each file (default: all)')

    for command in (make, convert):
        command.add_argument('--out', required=True, help='folder of the store to be made')
        command.add_argument('--force', action='store_true', help='replace an older store')
    for command in (make, verify, convert):
        command.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings, key=value')
    return parser.parse_args()


def build_images(args: argparse.Namespace) -> Any:
    """Return the data set that the config's train_dataloader reads, loading images and nothing more."""
    config = Config.fromfile(existing_config(args.config))
    config.merge_from_dict(args.cfg_options or {})
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    dataset = config.train_dataloader.dataset
    if 'MultiCropDataset' in str(dataset['type']):
        dataset = dataset['dataset']
    loading = [step for step in dataset.get('pipeline', []) if 'Load' in str(step['type'])]
    dataset = DATASETS.build(dict(dataset, pipeline=loading))
    dataset.full_init()
    return dataset


def make(args: argparse.Namespace) -> None:
    dataset = build_images(args)
    name = args.teacher or args.config
    model = build_teacher(name, args.checkpoint)
    size = args.size or input_size(model) or 224
    crop = CropSettings(size, tuple(args.scale), tuple(args.ratio), args.flip_prob, args.interpolation)
    classes, weights = dataset_classes(dataset), sha256(Path(args.checkpoint).read_bytes()).hexdigest()[:12]
    description = f'{name} with {Path(args.checkpoint).name} (sha256 {weights}), temperature {args.temperature:g}'
    wanted = dict(
        fingerprint=dataset_fingerprint(dataset),
        num_crops=args.num_crops,
        k=min(args.topk, classes),
        crop=dict(crop._asdict(), seed=args.seed),
        teacher=description)
    if not args.force and holds(args.out, wanted):
        print(f'{args.out}: there already, made by this teacher with these settings; --force makes it anew')
        return
    print(f'{len(dataset)} images of {type(dataset).__name__}, {args.num_crops} crops each; teacher {name} sees '
          f'{crop.size} pixels')
    result = make_soft_labels(
        dataset,
        teacher_probabilities(model, args.device, args.temperature),
        args.out,
        args.num_crops,
        classes,
        topk=args.topk,
        crop=crop,
        seed=args.seed,
        batch_size=args.batch_size,
        description=description,
        force=args.force,
        num_workers=args.num_workers,
        progress=partial(track, description='soft labels'))
    print(f'{args.out}: the teacher agrees with the true class on {100 * result["agreement"]:.2f} % of the crops; the '
          f'stored classes hold {100 * result["mass"]:.2f} % of its probability')


def holds(folder: str, wanted: dict) -> bool:
    """Return whether there is a store in ``folder`` that was made with these settings."""
    if not (Path(folder) / META).is_file():
        return False
    meta = SoftLabelStore(folder).meta
    return all(meta[key] == value for key, value in json.loads(json.dumps(wanted)).items())


def verify(args: argparse.Namespace) -> None:
    store = SoftLabelStore(args.store)
    store.verify(progress=partial(track, description='checksums'))
    if args.config:
        store.check_dataset(build_images(args))
    print(f'{args.store}: {store.num_images} images x {store.num_crops} crops, top {store.k} of {store.num_classes} '
          f'classes, made for {store.meta["dataset"]} by {store.meta["teacher"] or "an unnamed teacher"}; all '
          'checksums agree')


def convert(args: argparse.Namespace) -> None:
    convert_fkd(args.root, build_images(args), args.out, args.format, num_crops=args.num_crops, force=args.force,
                progress=partial(track, description='FKD files'))
    print(f'{args.out}: converted')


if __name__ == '__main__':
    arguments = parse_args()
    with errors_in_a_sentence():
        {'make': make, 'verify': verify, 'convert-fkd': convert}[arguments.command](arguments)
