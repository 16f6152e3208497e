"""Putting the crops of several images into one batch."""
from typing import List, Optional, Union

from mmengine.dataset import default_collate, pseudo_collate

from vvq_mm.registry import FUNCTIONS


@FUNCTIONS.register_module()
def flatten_collate(batch: List[Union[dict, List[dict]]], _scope_: Optional[str] = None) -> dict:
    """Return one batch of all crops of all images, image after image.

    Args:
        batch (list): of lists of packed crops ``dict(inputs, data_samples)``, or of packed images as other data sets
            give them.
        _scope_ (str, optional): not used; MMEngine writes it into configs inherited through ``vvq_mm::`` and hands it
            on to functions.

    Returns:
        dict: ``inputs``, a tensor (crops, C, H, W) of the crops' dtype, or a list of tensors when their shapes differ;
        ``data_samples``, a list as long.

    Example:
        >>> import torch
        >>> crop = dict(inputs=torch.zeros(3, 4, 4, dtype=torch.uint8))
        >>> flatten_collate([[crop, crop], [crop, crop]])['inputs'].shape
        torch.Size([4, 3, 4, 4])
    """
    crops = [crop for item in batch for crop in (item if isinstance(item, list) else [item])]
    same = len({crop['inputs'].shape for crop in crops}) == 1
    return default_collate(crops) if same else pseudo_collate(crops)
