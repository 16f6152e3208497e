"""Scikit-learn's digits: 1,797 real handwritten digits that come with the wheel, for runs that need no download."""
from typing import List

import numpy as np
from mmpretrain.datasets import BaseDataset
from PIL import Image

from vvq_mm.functional.seeding import hash64
from vvq_mm.registry import DATASETS


# positions modulo 5 of the sorted images, see Digits
_SPLITS = dict(test=(0, ), train=(1, 2, 3, 4), val=(1, ), fit=(2, 3, 4))


@DATASETS.register_module()
class Digits(BaseDataset):
    """The 8 x 8 digits of ``sklearn.datasets.load_digits`` in 10 classes, as square uint8 images of one channel.

    The split is fixed: images are sorted by class, inside a class by a hash of their index, and every fifth is a test
    image. So each class is divided alike, and nothing depends on a random generator.

    Args:
        split (str): ``train`` (1,437 images), ``test`` (360), or a part of ``train``: ``fit`` (1,077) and ``val``
            (360), to choose settings without looking at the test images. Defaults to ``train``.
        size (int): side of the image in pixels; 8 are enlarged to it by bilinear interpolation. Defaults to 32.
        **kwargs: arguments of mmpretrain's ``BaseDataset``, such as ``pipeline``.

    Raises:
        ValueError: unknown split.
        ImportError: scikit-learn is not installed.

    Example:
        >>> len(Digits('train')), Digits('test')[0]['img'].shape
        (1437, (32, 32, 1))
    """

    METAINFO = {'classes': tuple('0123456789')}

    def __init__(self, split: str = 'train', size: int = 32, **kwargs) -> None:
        if split not in _SPLITS:
            raise ValueError(f'expected split to be one of {", ".join(_SPLITS)}, got {split!r} for Digits')
        self.split, self.size = split, size
        super().__init__(ann_file='', **kwargs)

    def load_data_list(self) -> List[dict]:
        """Return the images ('img', uint8, (size, size, 1)) and labels ('gt_label') of the split."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError('expected scikit-learn for the data set Digits, which its images come with, got none; '
                              'run `pip install scikit-learn`') from error
        images, labels = load_digits(return_X_y=True)
        order = np.lexsort((hash64(np.arange(len(labels))), labels))
        chosen = np.sort(order[np.isin(np.arange(len(order)) % 5, _SPLITS[self.split])])
        return [dict(img=self._enlarge(images[i]), gt_label=int(labels[i])) for i in chosen]

    def _enlarge(self, pixels: np.ndarray) -> np.ndarray:
        """Return the 64 values 0 .. 16 as a uint8 image (size, size, 1) with values 0 .. 255."""
        image = Image.fromarray(np.rint(pixels.reshape(8, 8) * (255 / 16)).astype(np.uint8))
        return np.asarray(image.resize((self.size, self.size), Image.BILINEAR))[..., None].copy()

    def extra_repr(self) -> List[str]:
        """Return lines for ``repr``."""
        return [f'Split: \t{self.split}', f'Size: \t{self.size}']
