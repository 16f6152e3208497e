"""What calibration remembers of a tensor: a bounded sample, its extremes and its mean magnitude."""
from typing import List

import torch
from torch import Tensor

from vvq_mm.functional.groups import split_groups
from vvq_mm.functional.scale_init import Statistics

SAMPLE = 32768  # values kept in the end, and of each batch; divided among the groups
SAMPLE_PER_BATCH = 8192
FEWEST = 1024  # values of a group, so that many groups still have a distribution each


class Observer:
    """Collects :class:`Statistics` of the tensors that pass, one batch at a time.

    Args:
        groups (int): number of scales of the quantizer.
        axis (int): the axis that the groups divide.

    Example:
        >>> observer = Observer(groups=1, axis=0)
        >>> observer.update(torch.tensor([-1., 3.]))
        >>> observer.statistics().mean_abs
        tensor([2.])
    """

    def __init__(self, groups: int, axis: int) -> None:
        self.groups, self.axis = groups, axis
        self.samples: List[Tensor] = []
        self.absolute_sum, self.count = 0.0, 0

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add a tensor: its extremes, and values spread evenly over it."""
        values = split_groups(x.detach().float(), self.groups, self.axis)
        self.absolute_sum = self.absolute_sum + values.abs().double().sum(1)
        self.count += values.shape[1]
        extremes = torch.stack([values.amin(1), values.amax(1)], dim=1)
        self.samples.append(torch.cat([extremes, _spread(values, max(SAMPLE_PER_BATCH // self.groups, FEWEST))], dim=1))

    def statistics(self) -> Statistics:
        """Return what was seen; the number of values depends on the groups alone, so that ranks can exchange them."""
        sample = max(SAMPLE // self.groups, FEWEST)
        values = torch.cat(self.samples, dim=1)
        extremes = torch.stack([values.amin(1), values.amax(1)], dim=1)
        return Statistics(torch.cat([extremes, _spread(values, sample, exactly=True)], dim=1),
                          (self.absolute_sum / self.count).float())


def weight_statistics(weight: Tensor, groups: int, axis: int) -> Statistics:
    """Return the statistics of a weight: all of it up to 65,536 values per group, an even sample beyond."""
    values = split_groups(weight.detach().float(), groups, axis)
    extremes = torch.stack([values.amin(1), values.amax(1)], dim=1)
    sample = values if values.shape[1] <= 2 * SAMPLE else torch.cat([extremes, _spread(values, 2 * SAMPLE)], dim=1)
    return Statistics(sample, values.abs().mean(1))


def _spread(values: Tensor, count: int, exactly: bool = False) -> Tensor:
    """Return ``count`` columns spread evenly over ``values`` (all of them if there are fewer and not ``exactly``)."""
    size = values.shape[1]
    if size <= count and not exactly:
        return values
    return values[:, torch.linspace(0, size - 1, count, dtype=torch.float64, device=values.device).round().long()]
