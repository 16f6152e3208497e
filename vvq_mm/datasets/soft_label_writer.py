"""Writing a store of soft labels: checked on the way in, complete or not there at all."""
import json
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from vvq_mm.errors import SoftLabelError

from .fingerprint import dataset_classes, dataset_fingerprint
from .soft_label_store import BOX_UNIT, CHECKSUMS, CROPS, META, VERSION, meta_checksum, record_dtype

MAX_CLASSES = 65536  # of an index of two bytes


class SoftLabelWriter:
    """Writes a store into a folder beside ``path`` and renames it when every image is there; a context manager.

    Args:
        path (str | Path): folder to be made.
        dataset: data set that the labels belong to.
        num_classes (int): number of classes, up to 65,536.
        num_crops (int): crops per image.
        k (int): classes per label.
        teacher (str): description of the teacher.
        crop (dict, optional): settings of the crops.
        force (bool): whether an older store at ``path`` is replaced. Defaults to False.

    Raises:
        SoftLabelError: ``path`` is taken, or a number does not fit.

    Example:
        >>> with SoftLabelWriter('labels', dataset, 10, num_crops=1, k=2) as writer:  # doctest: +SKIP
        ...     for index in range(len(dataset)):
        ...         writer.write(index, boxes=[[0, 0, 1, 1]], flips=[0], labels=[[[3, 5], [0.8, 0.1]]])
    """

    def __init__(self,
                 path: Union[str, Path],
                 dataset: Any,
                 num_classes: int,
                 num_crops: int,
                 k: int,
                 teacher: str = '',
                 crop: Optional[dict] = None,
                 force: bool = False) -> None:
        self.path = Path(path)
        named = dataset_classes(dataset) or num_classes
        for what, value, low, high in (
            ('images', len(dataset), 1, None),
            ('num_crops', num_crops, 1, None),
            ('k', k, 1, num_classes),
            ('num_classes', num_classes, named, min(named, MAX_CLASSES)),
        ):
            if value < low or (high is not None and value > high):
                raise SoftLabelError(f'expected {what} from {low} to {high or "any number"}, got {value} for the store '
                                     f'{self.path} of {type(dataset).__name__}')
        _check_target(self.path, force)
        self.meta = dict(
            version=VERSION,
            num_images=len(dataset),
            num_crops=num_crops,
            num_classes=num_classes,
            k=k,
            dataset=type(dataset).__name__,
            fingerprint=dataset_fingerprint(dataset),
            teacher=teacher,
            crop=dict(crop or {}))
        self._written = np.zeros(len(dataset), bool)

    def __enter__(self) -> 'SoftLabelWriter':
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=f'{self.path.name}.partial-', dir=self.path.parent))
        shape = self.meta['num_images'], self.meta['num_crops']
        self._crops = np.memmap(self._folder / CROPS, record_dtype(self.meta['k']), 'w+', shape=shape)
        self._checksums = np.zeros(shape[0], '<u4')
        return self

    def write(self, index: int, boxes: np.ndarray, flips: np.ndarray, labels: np.ndarray) -> None:
        """Write all crops of one image.

        Args:
            index (int): of the image.
            boxes (array): (num_crops, 4), (top, left, height, width) as fractions of the image, 0 to 1.
            flips (array): (num_crops,), whether a crop is mirrored.
            labels (array): (num_crops, 2, k), class indices and probabilities.

        Raises:
            SoftLabelError: a shape, box, class index or probability does not fit; names the image.
        """
        boxes, flips, labels = np.asarray(boxes, np.float64), np.asarray(flips), np.asarray(labels, np.float64)
        self._check(index, boxes, flips, labels)
        records = self._crops[index]
        records['box'] = np.rint(boxes * BOX_UNIT)
        records['flip'], records['index'], records['prob'] = flips, labels[:, 0], labels[:, 1]
        self._checksums[index] = zlib.crc32(records.tobytes())
        self._written[index] = True

    def _check(self, index: int, boxes: np.ndarray, flips: np.ndarray, labels: np.ndarray) -> None:
        """Raise if the crops of an image do not fit the store."""
        num_crops, k, last = self.meta['num_crops'], self.meta['k'], self.meta['num_classes'] - 1
        shapes, expected = (boxes.shape, flips.shape, labels.shape), ((num_crops, 4), (num_crops, ), (num_crops, 2, k))
        problem = None
        if shapes != expected:
            problem = f'boxes, flips and labels of shapes {expected}, got {shapes}'
        elif not _within(boxes, 1):
            problem = f'boxes as fractions from 0 to 1, got {boxes.min():g} to {boxes.max():g}'
        elif not _within(labels[:, 0], last):
            problem = f'class indices from 0 to {last}, got {labels[:, 0].min():g} to {labels[:, 0].max():g}'
        elif not _within(labels[:, 1], 1 + 1e-3):
            problem = f'probabilities from 0 to 1, got {labels[:, 1].min():g} to {labels[:, 1].max():g}'
        if problem:
            raise SoftLabelError(f'expected {problem} for image {index} of the store {self.path}; check what makes the '
                                 'labels')

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _finish(self) -> None:
        """Check that all images were written and move the folder to its place."""
        if not self._written.all():
            raise SoftLabelError(f'expected labels of all {len(self._written)} images for the store {self.path}, got '
                                 f'{self._written.sum()} (the first missing is {int(np.argmin(self._written))}); '
                                 'nothing was kept')
        self._crops.flush()
        self._checksums.tofile(self._folder / CHECKSUMS)
        meta = {**self.meta, 'checksum': meta_checksum(self.meta)}
        (self._folder / META).write_text(json.dumps(meta, indent=1) + '\n')
        self._folder.chmod(0o755)  # mkdtemp makes it for this user alone
        if self.path.exists():
            old = Path(tempfile.mkdtemp(prefix=f'{self.path.name}.old-', dir=self.path.parent))
            self.path.rename(old / 'store')
            self._folder.rename(self.path)
            shutil.rmtree(old)
        else:
            self._folder.rename(self.path)


def _within(values: np.ndarray, high: float) -> bool:
    """Return whether all values are numbers from 0 to ``high``."""
    return bool(((values >= 0) & (values <= high)).all())


def _check_target(path: Path, force: bool) -> None:
    """Raise if something at ``path`` would be lost; ``force`` gives up an older store and nothing else."""
    there = {file.name for file in path.iterdir()} if path.is_dir() else {path.name} if path.exists() else set()
    if there and not (force and there <= {META, CROPS, CHECKSUMS}):
        advice = 'it holds other files' if force else 'or force it to replace an older store'
        raise SoftLabelError(f'expected no file or an empty folder at {path}, got {", ".join(sorted(there)[:3])}; '
                             f'choose another folder, {advice}')
