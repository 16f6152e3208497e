"""Reading the official FKD soft labels (szq0214/FKD): one pickled file per image, opened without running code from it.

A file holds ``[coordinates (K, 4), flips (K,), labels]`` as numpy arrays; coordinates are (top, left, height, width) as
fractions. The layout of ``labels`` is the format, see :data:`FORMATS`.
"""
import pickle
import re
from pathlib import Path
from typing import Any, Callable, Iterable, Optional, Tuple, Union

import numpy as np
import torch

from vvq_mm.errors import SoftLabelError

from .fingerprint import dataset_classes
from .soft_label_writer import SoftLabelWriter

# name -> shape of the labels of K crops; the tail of each is `smooth`, see labels_of
FORMATS = dict(hard=(), smoothing=(2, ), marginal_smoothing_k5=(2, 5), marginal_smoothing_k10=(2, 10),
               marginal_renorm=(2, 5), marginal_renorm_k5=(2, 5))
_RECONSTRUCT = np.ndarray([0]).__reduce__()[0]
# all that a pickled numeric array names, under the module paths of numpy 1 and 2
_NUMPY = [
    (_RECONSTRUCT, 'numpy.core.multiarray._reconstruct'),
    (_RECONSTRUCT, 'numpy._core.multiarray._reconstruct'),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(name)) for name in ('f2', 'f4', 'f8', 'i4', 'i8', 'u1', '?')),
]


def load_fkd(path: Union[str, Path]) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return coordinates (K, 4), flips (K,) and labels of one file.

    Raises:
        SoftLabelError: the file is missing, damaged, or holds anything but numeric arrays; nothing in it is run.
    """
    expected = ('expected an FKD file, a list of three numpy arrays [coordinates (K, 4), flips (K,), labels (K, ...)], '
                f'in {path}')
    try:
        # on leaving, the scope takes back what it lists, so it must not list what the user has allowed
        allowed = torch.serialization.get_safe_globals()
        with torch.serialization.safe_globals([name for name in _NUMPY if name not in allowed]):
            content = torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError as error:
        raise SoftLabelError(f'{expected}, got no file; check the root folder, and that every image has its label '
                             'file') from error
    except pickle.UnpicklingError as error:
        # torch's own words advise to load the file unsafely, so only the name is taken from them
        foreign = re.search(r"GLOBAL (\S+)|<class '([^']+)'>", str(error))
        reason = f'the class or function {foreign[1] or foreign[2]}' if foreign else 'a pickle of something else'
        raise SoftLabelError(f'{expected}, got {reason}; it was not run. Do not trust this file, get it again from its '
                             'source') from error
    except Exception as error:  # truncated or no pickle at all: torch and zipfile raise many kinds
        reason = f'{type(error).__name__}: {" ".join(str(error).split())}'
        raise SoftLabelError(f'{expected}, got a damaged file ({reason}); copy it again') from error
    arrays = isinstance(content, (list, tuple)) and len(content) == 3 and all(
        isinstance(item, np.ndarray) and item.dtype.kind in 'fiub' for item in content)
    if not arrays or content[0].ndim != 2 or content[0].shape[1] != 4 or len({len(item) for item in content}) != 1:
        items = content if isinstance(content, (list, tuple)) else [content]
        got = [getattr(item, 'shape', type(item).__name__) for item in items]
        raise SoftLabelError(f'{expected}, got {got}')
    return tuple(content)


def labels_of(labels: np.ndarray, form: str, where: str = 'FKD labels') -> np.ndarray:
    """Return labels of any format as (K, 2, k) float32, to be read with the tail ``smooth``.

    A hard label is a probability of 1 and a renormalised one sums to 1, so their tail is empty; the two kinds of
    smoothing leave the rest to the tail, as in the official decoder.

    Example:
        >>> labels_of(np.array([7]), 'hard').tolist()
        [[[7.0], [1.0]]]
    """
    if form not in FORMATS:
        raise SoftLabelError(f'expected an FKD format among {", ".join(FORMATS)}, got {form!r}')
    if labels.shape[1:] != FORMATS[form]:
        raise SoftLabelError(f'expected labels of shape (K, {", ".join(map(str, FORMATS[form]))}) for the format '
                             f'{form}, got {labels.shape} in {where}; give the format that the files were made with')
    labels = labels.astype(np.float32)
    if form == 'hard':
        return np.stack([labels, np.ones_like(labels)], axis=1)[..., None]
    if form == 'smoothing':
        return labels[..., None]
    if form.startswith('marginal_renorm'):
        labels[:, 1] /= labels[:, 1].sum(-1, keepdims=True)
    return labels


def find_fkd(root: Union[str, Path], img_path: str) -> Path:
    """Return the label file of an image: the end of its path under ``root``, with the suffix ``.tar``.

    It is no tar archive. Published files lie at ``root/imagenet/train/CLASS/NAME.tar``, their folder having the name of
    the data set's; fewer of these folders are accepted too.
    """
    parts = Path(img_path).with_suffix('.tar').parts
    candidates = [Path(root, *parts[-depth:]) for depth in (4, 3, 2, 1)]
    return next((path for path in candidates if path.is_file()), candidates[2])


def convert_fkd(root: Union[str, Path],
                dataset: Any,
                out: Union[str, Path],
                form: str = 'marginal_smoothing_k5',
                num_classes: Optional[int] = None,
                num_crops: Optional[int] = None,
                force: bool = False,
                progress: Callable[[Iterable], Iterable] = iter) -> None:
    """Write the official files of a data set as one store.

    Args:
        root (str | Path): folder of the FKD files.
        dataset: data set of MMEngine's kind whose data infos name ``img_path``.
        out (str | Path): the store's folder.
        form (str): one of :data:`FORMATS`. Defaults to ``marginal_smoothing_k5``.
        num_classes (int, optional): Defaults to the data set's.
        num_crops (int, optional): the first so many of each file. Defaults to all of the first file.
        force (bool): whether an older store is replaced. Defaults to False.
        progress (Callable): wraps the loop over images.

    Raises:
        SoftLabelError: a file is missing, unsafe, damaged, of another format or has too few crops.
    """

    def read(index: int) -> Tuple[Path, np.ndarray, np.ndarray, np.ndarray]:
        path = find_fkd(root, dataset.get_data_info(index)['img_path'])
        boxes, flips, labels = load_fkd(path)
        return path, boxes, flips, labels_of(labels, form, str(path))

    _, boxes, _, labels = read(0)
    num_crops = num_crops or len(boxes)
    crop = dict(source='FKD', format=form)
    with SoftLabelWriter(out, dataset, num_classes or dataset_classes(dataset), num_crops, labels.shape[-1],
                         f'FKD files of {form}', crop, force) as writer:
        for index in progress(range(len(dataset))):
            path, boxes, flips, labels = read(index)
            if len(boxes) < num_crops:
                raise SoftLabelError(f'expected at least {num_crops} crops in {path}, got {len(boxes)}; lower '
                                     'num_crops')
            writer.write(index, boxes[:num_crops].clip(0, 1), flips[:num_crops], labels[:num_crops])
