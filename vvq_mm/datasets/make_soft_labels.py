"""Making soft labels as FKD (szq0214/FKD) does: random crops of every image, and what a teacher says about each."""
import math
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, NamedTuple, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vvq_mm.errors import SoftLabelError
from vvq_mm.functional.seeding import hash64
from vvq_mm.functional.soft_label import encode_topk

from .multi_crop import load_image
from .replay_crop import ReplayCrop
from .soft_label_store import BOX_UNIT
from .soft_label_writer import SoftLabelWriter

Teacher = Callable[[Tensor], Tensor]


class CropSettings(NamedTuple):
    """How crops are drawn; the defaults are FKD's for ImageNet.

    Args:
        size (int): side of the crop that the teacher sees, in pixels.
        scale (tuple): smallest and largest area of the crop, as a fraction of the image's.
        ratio (tuple): smallest and largest width / height.
        flip_prob (float): probability that a crop is mirrored; 0 for digits and letters.
        interpolation (str): see :class:`ReplayCrop`.
    """

    size: int = 224
    scale: Tuple[float, float] = (0.08, 0.936)
    ratio: Tuple[float, float] = (3 / 4, 4 / 3)
    flip_prob: float = 0.5
    interpolation: str = 'bicubic'


def make_soft_labels(dataset: Any,
                     teacher: Teacher,
                     out: Union[str, Path],
                     num_crops: int,
                     num_classes: int,
                     topk: int = 5,
                     crop: CropSettings = CropSettings(),
                     seed: int = 0,
                     batch_size: int = 256,
                     description: str = '',
                     force: bool = False,
                     num_workers: int = 0,
                     progress: Callable[[Iterable], Iterable] = iter) -> Dict[str, float]:
    """Write a store of soft labels for ``dataset`` and return how good the teacher is on its crops.

    The crops of an image are a pure function of the seed and its index.

    Args:
        dataset: fully initialised data set of MMEngine's kind whose pipeline loads the image.
        teacher (Callable): maps crops, uint8 (B, C, size, size) in the data set's channel order, to probabilities
            (B, num_classes).
        out (str | Path): the store's folder, complete at the end or not there at all.
        num_crops (int): crops per image.
        num_classes (int): number of classes.
        topk (int): probabilities kept per crop; all when there are fewer classes. Defaults to 5.
        crop (CropSettings): how crops are drawn.
        seed (int): Defaults to 0.
        batch_size (int): crops per call of the teacher. Defaults to 256.
        description (str): of the teacher, kept in the store.
        force (bool): whether an older store is replaced. Defaults to False.
        num_workers (int): processes that read images. Defaults to 0.
        progress (Callable): wraps the loop over images, such as ``tqdm``.

    Returns:
        dict: ``agreement``, share of crops whose most probable class is the true one; ``mass``, mean probability that
        was kept.

    Raises:
        SoftLabelError: the teacher's output is no probability, or the store cannot be written.
        OSError: an image cannot be read.

    Example:
        >>> uniform = lambda images: torch.full((len(images), 10), 0.1)
        >>> make_soft_labels(Digits(), uniform, 'labels', num_crops=4, num_classes=10)['mass']  # doctest: +SKIP
        0.5
    """
    settings = dict(crop._asdict(), seed=seed)
    loader = DataLoader(_CropsOfImage(dataset, num_crops, crop, seed), batch_size=None, num_workers=num_workers)
    agree = mass = 0.0
    topk = min(topk, num_classes)
    with SoftLabelWriter(out, dataset, num_classes, num_crops, topk, description, settings, force) as writer:
        for group in progress(_Groups(loader, images=max(batch_size // num_crops, 1))):
            crops = torch.cat([image[3] for image in group])
            probabilities = torch.cat([_ask(teacher, part, num_classes) for part in crops.split(batch_size)])
            labels = encode_topk(probabilities, topk).unflatten(0, (len(group), num_crops))
            for (index, boxes, flips, _, truth), label in zip(group, labels):
                writer.write(index, boxes, flips, label)
                agree += (label[:, 0, 0] == truth).sum().item()
            mass += labels[:, :, 1].sum().item()
    total = len(dataset) * num_crops
    return dict(agreement=agree / total, mass=mass / total)


@torch.no_grad()
def _ask(teacher: Teacher, images: Tensor, num_classes: int) -> Tensor:
    """Return the teacher's probabilities (B, num_classes) on the CPU, checked."""
    probabilities = teacher(images).float().cpu()
    if probabilities.shape != (len(images), num_classes):
        raise SoftLabelError(f'expected probabilities of shape {(len(images), num_classes)} from the teacher, got '
                             f'{tuple(probabilities.shape)}; give a teacher for this number of classes')
    if not torch.allclose(probabilities.sum(-1), torch.ones(()), atol=1e-2) or probabilities.min() < 0:
        raise SoftLabelError('expected probabilities that sum to 1 from the teacher, got values from '
                             f'{probabilities.min():g} to {probabilities.max():g} and a first sum of '
                             f'{probabilities[0].sum():g}; return logits.softmax(-1), and check that its weights are '
                             'finite')
    return probabilities


class _CropsOfImage(Dataset):
    """Item: index, boxes (num_crops, 4) in fractions, flips, crops uint8 (num_crops, C, size, size), true class."""

    def __init__(self, dataset: Any, num_crops: int, crop: CropSettings, seed: int) -> None:
        self.dataset, self.num_crops, self.crop, self.seed = dataset, num_crops, crop, seed
        self.replay = ReplayCrop(crop.size, crop.interpolation)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Tuple[int, np.ndarray, np.ndarray, Tensor, int]:
        results = load_image(self.dataset, index)
        image, rng = results['img'], np.random.default_rng(int(hash64(self.seed, index)[0]))
        height, width = image.shape[:2]
        pixels = [sample_box(rng, height, width, self.crop.scale, self.crop.ratio) for _ in range(self.num_crops)]
        # what is stored is what the teacher sees: fractions as the store rounds them
        boxes = np.rint(np.array(pixels) / (height, width, height, width) * BOX_UNIT) / BOX_UNIT
        flips = rng.random(self.num_crops) < self.crop.flip_prob
        crops = [self.replay(dict(img=image, crop_box=box, stored_flip=flip))['img'] for box, flip in zip(boxes, flips)]
        size = self.crop.size
        crops = torch.from_numpy(np.stack(crops)).reshape(self.num_crops, size, size, -1).permute(0, 3, 1, 2)
        return index, boxes, flips, crops, int(np.asarray(results.get('gt_label', -1)).flat[0])


class _Groups:
    """Items of a loader in lists of ``images``; has a length, for progress bars."""

    def __init__(self, loader: DataLoader, images: int) -> None:
        self.loader, self.images = loader, images

    def __len__(self) -> int:
        return math.ceil(len(self.loader) / self.images)

    def __iter__(self):
        group = []
        for item in self.loader:
            group.append(item)
            if len(group) == self.images:
                yield group
                group = []
        if group:
            yield group


def sample_box(rng: np.random.Generator, height: int, width: int, scale: Sequence[float],
               ratio: Sequence[float]) -> Tuple[int, int, int, int]:
    """Return (top, left, height, width) in pixels as torchvision's ``RandomResizedCrop`` draws them.

    Args:
        rng (np.random.Generator): source of randomness.
        height (int): of the image.
        width (int): of the image.
        scale (Sequence[float]): smallest and largest area as a fraction of the image's.
        ratio (Sequence[float]): smallest and largest width / height, drawn log-uniformly.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    # no such box fits, as in a very long image: the largest in the middle
    aspect = min(max(width / height, ratio[0]), ratio[1])
    h, w = min(height, max(round(width / aspect), 1)), min(width, max(round(height * aspect), 1))
    return (height - h) // 2, (width - w) // 2, h, w
