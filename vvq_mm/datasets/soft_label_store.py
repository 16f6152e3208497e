"""Stored soft labels: a folder that holds, for each image, many crops and what a teacher said about each.

==================  ==========================================================================================
``meta.json``       version, sizes, data set and its fingerprint, teacher, crop settings, checksum of this file
``crops.bin``       (images, crops) records of 9 + 4 k bytes, see :func:`record_dtype`; read through a memory map
``checksums.bin``   CRC-32 of the records of each image, little-endian uint32
==================  ==========================================================================================
"""
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any, Callable, Iterable, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor

from vvq_mm.errors import SoftLabelError

from .fingerprint import dataset_classes, dataset_fingerprint, evenly_spaced

VERSION = 1
META, CROPS, CHECKSUMS = 'meta.json', 'crops.bin', 'checksums.bin'
BOX_UNIT = 65535  # boxes are fractions in 1/65535: exact to the pixel for images up to 65,535 pixels wide
MAKE_AGAIN = 'make it again with tools/soft_labels.py'


def record_dtype(k: int) -> np.dtype:
    """Return the record of a crop: box (top, left, height, width) as fractions, flip, k classes, k probabilities.

    Example:
        >>> record_dtype(5).itemsize
        29
    """
    return np.dtype([('box', '<u2', (4, )), ('flip', 'u1'), ('index', '<u2', (k, )), ('prob', '<f2', (k, ))])


def meta_checksum(meta: dict) -> str:
    """Return the SHA-256 of the meta data without its own ``checksum``."""
    content = {key: value for key, value in meta.items() if key != 'checksum'}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class SoftLabelStore:
    """Reads a store; opening it checks version, sizes and the checksums of up to 4,096 images.

    Copies in data loader workers share the memory map and are not checked again.

    Args:
        path (str | Path): folder of the store.

    Raises:
        SoftLabelError: the store is missing, damaged or of another version.

    Example:
        >>> store = SoftLabelStore('data/imagenet_soft_labels')  # doctest: +SKIP
        >>> boxes, flips, labels = store.read(index=7, crops=[0, 3])  # doctest: +SKIP
        >>> boxes.shape, flips.shape, labels.shape  # doctest: +SKIP
        ((2, 4), (2,), torch.Size([2, 2, 5]))
    """

    def __init__(self, path: Union[str, Path]) -> None:
        self.path = Path(path)
        self.meta = _read_meta(self.path)
        self.num_images, self.num_crops = self.meta['num_images'], self.meta['num_crops']
        self.num_classes, self.k = self.meta['num_classes'], self.meta['k']
        self._open()
        self.verify(evenly_spaced(self.num_images).tolist())

    def _open(self) -> None:
        """Map both files, after their sizes were checked."""
        dtype, shape = record_dtype(self.k), (self.num_images, self.num_crops)
        for name, size in ((CROPS, dtype.itemsize * shape[0] * shape[1]), (CHECKSUMS, 4 * shape[0])):
            file = self.path / name
            if not file.is_file() or file.stat().st_size != size:
                got = f'{file.stat().st_size} bytes' if file.is_file() else 'no such file'
                raise SoftLabelError(f'expected {size} bytes in {file}, got {got}; the store is truncated: copy it '
                                     f'again or {MAKE_AGAIN}')
        self._crops = np.memmap(self.path / CROPS, dtype, 'r', shape=shape)
        self._checksums = np.memmap(self.path / CHECKSUMS, '<u4', 'r', shape=shape[:1])

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key not in ('_crops', '_checksums')}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()

    def verify(self, images: Optional[Sequence[int]] = None, progress: Callable[[Iterable], Iterable] = iter) -> None:
        """Compare the checksums and check the class indices of ``images``, of all by default.

        Args:
            images (Sequence[int], optional): indices.
            progress (Callable): wraps the loop, such as ``tqdm``. Defaults to nothing shown.

        Raises:
            SoftLabelError: a checksum differs or a class index is out of range; names the image.
        """
        for index in progress(range(self.num_images) if images is None else images):
            records = self._crops[index]
            if zlib.crc32(records.tobytes()) != self._checksums[index]:
                raise SoftLabelError(f'expected checksum {self._checksums[index]:08x} for the crops of image {index} '
                                     f'in {self.path}, got {zlib.crc32(records.tobytes()):08x}; the store is damaged: '
                                     f'copy it again or {MAKE_AGAIN}')
            self._check_classes(records['index'], index)

    def _check_classes(self, classes: np.ndarray, index: int) -> None:
        if classes.max() >= self.num_classes:
            raise SoftLabelError(f'expected class indices below {self.num_classes}, got {classes.max()} for image '
                                 f'{index} in {self.path}; {MAKE_AGAIN}')

    def check_dataset(self, dataset: Any) -> None:
        """Raise unless the store was made for ``dataset``, a fully initialised data set of MMEngine's kind.

        Raises:
            SoftLabelError: other number of images, of classes, or other samples.
        """
        expected = dict(images=self.num_images, classes=self.num_classes, fingerprint=self.meta['fingerprint'])
        got = dict(images=len(dataset), classes=dataset_classes(dataset) or self.num_classes)
        if len(dataset) == self.num_images:
            got['fingerprint'] = dataset_fingerprint(dataset)
        for what, value in got.items():
            if value != expected[what]:
                raise SoftLabelError(f'expected the data set that {self.path} was made for ({self.meta["dataset"]}, '
                                     f'{what} {expected[what]}), got {type(dataset).__name__} with {what} {value}; '
                                     'give the store of this data set or make one with tools/soft_labels.py')

    def check_crops(self, num_crops: int) -> None:
        """Raise a :class:`SoftLabelError` unless ``num_crops`` different crops can be drawn from an image."""
        if not 1 <= num_crops <= self.num_crops:
            raise SoftLabelError(f'expected num_crops from 1 to the {self.num_crops} stored per image in {self.path}, '
                                 f'got {num_crops}; ask for fewer, or make a store with more (tools/soft_labels.py '
                                 'make --num-crops)')

    def read(self, index: int, crops: Sequence[int]) -> Tuple[np.ndarray, np.ndarray, Tensor]:
        """Return m crops of one image.

        Args:
            index (int): of the image.
            crops (Sequence[int]): m numbers of crops, each below ``num_crops``.

        Returns:
            tuple: boxes (m, 4) float64, (top, left, height, width) as fractions of the image; flips (m,) bool; labels
            (m, 2, k) float32, class indices and probabilities.

        Raises:
            SoftLabelError: no such image or crop, or a stored class index is out of range.
        """
        crops = np.asarray(crops)
        if not 0 <= index < self.num_images or crops.min() < 0 or crops.max() >= self.num_crops:
            raise SoftLabelError(f'expected an image below {self.num_images} and crops below {self.num_crops} in '
                                 f'{self.path}, got image {index} and crops {crops.tolist()}; give the store of this '
                                 'data set or ask for fewer crops')
        records = self._crops[index][crops]
        self._check_classes(records['index'], index)
        labels = np.stack([records['index'].astype(np.float32), records['prob'].astype(np.float32)], axis=1)
        return records['box'] / BOX_UNIT, records['flip'].astype(bool), torch.from_numpy(labels)


def _read_meta(path: Path) -> dict:
    """Return the checked contents of ``meta.json``."""
    file = path / META
    if not file.is_file():
        raise SoftLabelError(f'expected a store of soft labels with a {META}, got none in {path}; '
                             f'{MAKE_AGAIN.replace("it again", "one")}')
    try:
        meta = json.loads(file.read_text())
        version = meta['version']
    except (ValueError, KeyError, TypeError) as error:
        raise SoftLabelError(f'expected JSON with a `version` in {file}, got {error!r}; copy the store again or '
                             f'{MAKE_AGAIN}') from error
    if version != VERSION:
        raise SoftLabelError(f'expected a store of version {VERSION}, got version {version!r} in {file}; {MAKE_AGAIN}')
    if meta.get('checksum') != meta_checksum(meta):
        raise SoftLabelError(f'expected checksum {meta_checksum(meta)} in {file}, got {meta.get("checksum")}; the file '
                             f'was changed: copy the store again or {MAKE_AGAIN}')
    return meta
