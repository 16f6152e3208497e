"""Groups: one scale per tensor, channel, head or block of rows is always a vector ``(groups,)`` along one axis."""
import torch
from torch import Tensor

from vvq_mm.errors import QuantizationError


def check_groups(size: int, groups: int, where: str) -> None:
    """Raise a :class:`QuantizationError` unless ``groups`` divides the axis length ``size``."""
    if size % groups:
        raise QuantizationError(f'expected an axis that divides into {groups} groups of equal size, got length {size} '
                                f'in {where}; choose another granularity for this slot')


def expand_groups(values: Tensor, shape: torch.Size, axis: int) -> Tensor:
    """Return ``values`` (groups,) repeated along ``axis`` so that it broadcasts against a tensor of ``shape``.

    Repeating the vector, and never reshaping the tensor, is what makes a scale on the wrong axis impossible to write.

    Example:
        >>> expand_groups(torch.tensor([1., 2.]), torch.Size([4, 3]), axis=0).flatten()
        tensor([1., 1., 2., 2.])
    """
    groups = values.shape[0]
    if groups == 1:
        return values.view((1, ) * len(shape)) if shape else values.view(())
    view = [1] * len(shape)
    view[axis] = shape[axis]
    return values.repeat_interleave(shape[axis] // groups).view(view)


def split_groups(x: Tensor, groups: int, axis: int) -> Tensor:
    """Return the elements of ``x`` as ``(groups, elements of a group)``.

    Example:
        >>> split_groups(torch.arange(6.).view(3, 2), groups=2, axis=1)
        tensor([[0., 2., 4.],
                [1., 3., 5.]])
    """
    return x.reshape(1, -1) if groups == 1 else x.movedim(axis, 0).reshape(groups, -1)
