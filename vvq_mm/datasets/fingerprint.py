"""Telling data sets apart without reading their images."""
import hashlib
from typing import Any, Optional

import numpy as np

SAMPLES = 4096


def evenly_spaced(length: int, count: int = SAMPLES) -> np.ndarray:
    """Return up to ``count`` indices below ``length``, first and last included.

    Example:
        >>> evenly_spaced(9, 3).tolist(), evenly_spaced(2, 3).tolist()
        ([0, 4, 8], [0, 1])
    """
    return np.unique(np.linspace(0, length - 1, min(length, count)).astype(np.int64))


def dataset_fingerprint(dataset: Any) -> str:
    """Return a SHA-256 over the length and over the name and label of up to 4,096 evenly spaced samples.

    The name is the path below the data set's image folder, so that a data set may be moved; images in memory have none
    and count by their position.

    Args:
        dataset: a data set of MMEngine's kind: ``__len__`` and ``get_data_info``.
    """
    digest = hashlib.sha256(f'{len(dataset)}\n'.encode())
    prefix = str(getattr(dataset, 'data_prefix', {}).get('img_path', '') or '')
    for index in evenly_spaced(len(dataset)).tolist():
        info = dataset.get_data_info(index)
        name = info.get('img_path', '').removeprefix(prefix).lstrip('/')
        label = np.asarray(info.get('gt_label', -1)).tolist()
        digest.update(f'{index} {name} {label}\n'.encode())
    return digest.hexdigest()


def dataset_classes(dataset: Any) -> Optional[int]:
    """Return the number of classes that the data set names, None if it names none."""
    classes = dataset.metainfo.get('classes')
    return None if classes is None else len(classes)
