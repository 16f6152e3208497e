"""Several crops of each image for one decoding, with stored soft labels if there are any."""
import copy
from typing import Any, List, Optional, Sequence, Union

import numpy as np
from mmengine.dataset import Compose
from mmpretrain.registry import DATASETS as MMPRETRAIN_DATASETS
from mmpretrain.registry import TRANSFORMS as MMPRETRAIN_TRANSFORMS

from vvq_mm.errors import SoftLabelError
from vvq_mm.functional.seeding import random_state
from vvq_mm.registry import DATASETS

from .replay_crop import ReplayCrop
from .sampler import Draw
from .soft_label_store import SoftLabelStore


@DATASETS.register_module()
class MultiCropDataset:
    """Wraps a data set: decodes an image once and returns ``num_crops`` packed crops of it, as a list.

    A batch of B images is B x num_crops crops (see :func:`flatten_collate`); an epoch is one pass over the images.
    Everything random about a visit follows from its seed, so crops do not depend on the number of workers or on what
    was loaded before.

    Args:
        dataset (dict | Dataset): the data set; its own pipeline only loads the image,
            ``[dict(type='LoadImageFromFile')]``.
        pipeline (Sequence[dict | Callable]): transforms of each crop; the last is ``PackInputs``.
        num_crops (int): crops per visit. Defaults to 4.
        soft_labels (str, optional): folder of a :class:`SoftLabelStore`. Then the crops are drawn from the stored ones
            without replacement, ``pipeline`` needs ``vvq_mm.ReplayCrop`` instead of random crops and flips, and
            ``PackInputs(algorithm_keys=('soft_label', ))`` passes on the label, float32 (2, k). Defaults to None.
        lazy_init (bool): whether annotations are loaded later, by ``full_init``. Defaults to False.

    Raises:
        SoftLabelError: the store does not fit the data set, the number of crops or the pipeline.

    Example:
        >>> dataset = MultiCropDataset(
        ...     dict(type='vvq_mm.Digits'), num_crops=2,
        ...     pipeline=[dict(type='RandomResizedCrop', scale=24), dict(type='PackInputs')])
        >>> [crop['inputs'].shape for crop in dataset[Draw(index=0, seed=5)]]
        [torch.Size([1, 24, 24]), torch.Size([1, 24, 24])]
    """

    def __init__(self,
                 dataset: Union[dict, Any],
                 pipeline: Sequence,
                 num_crops: int = 4,
                 soft_labels: Optional[str] = None,
                 lazy_init: bool = False) -> None:
        self.dataset = MMPRETRAIN_DATASETS.build(copy.deepcopy(dataset)) if isinstance(dataset, dict) else dataset
        self.pipeline = Compose(
            [MMPRETRAIN_TRANSFORMS.build(step) if isinstance(step, dict) else step for step in copy.deepcopy(pipeline)])
        if num_crops < 1:
            raise ValueError(f'expected num_crops of at least 1, got {num_crops} for MultiCropDataset')
        self.num_crops = num_crops
        self.store = None if soft_labels is None else SoftLabelStore(soft_labels)
        if self.store is not None:
            self.store.check_crops(num_crops)
            _check_pipeline(self.pipeline.transforms)
        self._fully_initialized = False
        if not lazy_init:
            self.full_init()

    def full_init(self) -> None:
        """Load the annotations and compare them with the store."""
        if self._fully_initialized:
            return
        self.dataset.full_init()
        if self.store is not None:
            self.store.check_dataset(self.dataset)
        self._fully_initialized = True

    @property
    def metainfo(self) -> dict:
        """Meta information of the wrapped data set."""
        return self.dataset.metainfo

    def get_data_info(self, index: int) -> dict:
        """Return the annotation of an image."""
        self.full_init()
        return self.dataset.get_data_info(index)

    def get_cat_ids(self, index: int) -> List[int]:
        """Return the classes of an image."""
        self.full_init()
        return self.dataset.get_cat_ids(index)

    def __len__(self) -> int:
        """Number of images."""
        self.full_init()
        return len(self.dataset)

    def __getitem__(self, index: Union[int, Draw]) -> List[dict]:
        """Return ``num_crops`` packed crops; a plain index is also the seed."""
        self.full_init()
        draw = index if isinstance(index, Draw) else Draw(int(index), int(index))
        with random_state(draw.seed):
            image = load_image(self.dataset, draw.index)
            return [self._crop(image, stored) for stored in self._draw_stored(draw.index)]

    def _draw_stored(self, index: int) -> List[dict]:
        """Return the keys that the store adds to each crop."""
        if self.store is None:
            return [{}] * self.num_crops
        chosen = np.random.choice(self.store.num_crops, self.num_crops, replace=False)
        crops = zip(*self.store.read(index, chosen))
        return [dict(crop_box=box, stored_flip=flip, soft_label=label) for box, flip, label in crops]

    def _crop(self, image: dict, stored: dict) -> dict:
        """Run the pipeline on a copy of the image: some transforms write into the array they get."""
        packed = self.pipeline({**copy.deepcopy(image), **stored})
        if not isinstance(packed, dict) or 'inputs' not in packed:
            raise ValueError('expected the pipeline of MultiCropDataset to end with PackInputs, got '
                             f"{type(packed).__name__} without 'inputs' for {image_name(self.dataset, image)}; append "
                             "dict(type='PackInputs')")
        return packed


def load_image(dataset: Any, index: int) -> dict:
    """Return the data info of an image after the data set's own pipeline; it has ``img``, ``img_shape``, ``ori_shape``.

    ``dataset[index]`` would hide a broken image: MMEngine takes another one at random when a pipeline returns None.

    Raises:
        OSError: the image cannot be read; names the file.
        TypeError: the data set has no pipeline of its own.
    """
    if not hasattr(dataset, 'pipeline'):
        raise TypeError(f'expected a data set with a pipeline of its own, got {type(dataset).__name__}; put '
                        'MultiCropDataset inside this wrapper, not around it')
    info = dataset.get_data_info(index)
    name = image_name(dataset, info)
    try:
        results = dataset.pipeline(info)
    except Exception as error:
        reason = f'{type(error).__name__}: {" ".join(str(error).split())}'
        raise OSError(f'expected a readable image, got {reason} for {name}; restore the file or take it out of the '
                      'data set') from error
    if results is None or results.get('img') is None:
        raise OSError(f'expected an image, got none for {name}; restore the file, or load it in the pipeline of the '
                      "wrapped data set: pipeline=[dict(type='LoadImageFromFile')]")
    for key in ('img_shape', 'ori_shape'):
        results.setdefault(key, results['img'].shape[:2])
    return results


def image_name(dataset: Any, info: dict) -> str:
    """Return the image's path, or its number for images in memory."""
    return info.get('img_path') or f'image {info.get("sample_idx")} of {type(dataset).__name__}'


def _check_pipeline(transforms: Sequence) -> None:
    """Raise if stored labels would not meet their crop or not arrive."""
    if not any(isinstance(step, ReplayCrop) for step in transforms):
        names = ', '.join(type(step).__name__ for step in transforms)
        raise SoftLabelError("expected dict(type='vvq_mm.ReplayCrop', scale=...) in the pipeline of MultiCropDataset "
                             f'with soft_labels, got {names}; a stored label belongs to a stored crop')
    if not any('soft_label' in getattr(step, 'algorithm_keys', ()) for step in transforms):
        raise SoftLabelError("expected dict(type='PackInputs', algorithm_keys=('soft_label', )) at the end of the "
                             'pipeline of MultiCropDataset with soft_labels, got none that passes soft_label on')
