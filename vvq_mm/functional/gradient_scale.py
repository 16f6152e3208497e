"""Module-dependent factors on the gradient of a scale (arXiv 2307.00331, and the official code's variants)."""
from typing import Union

import torch
from torch import Tensor

from .groups import split_groups


def _none(x: Tensor, qmax: int, groups: int, axis: int, batched: bool) -> float:
    return 1.0


def _lsq(x: Tensor, qmax: int, groups: int, axis: int, batched: bool) -> float:
    samples = max(x.shape[0], 1) if batched else 1
    return (max(x.numel(), 1) / samples / groups * qmax)**-0.5


def _l1(x: Tensor, qmax: int, groups: int, axis: int, batched: bool) -> Tensor:
    magnitude = split_groups(x.detach().float().abs(), groups, axis).sum(1)
    return (magnitude * qmax).clamp_min(torch.finfo(torch.float32).tiny).rsqrt()


def _official_act(x: Tensor, qmax: int, groups: int, axis: int, batched: bool) -> float:
    return 1.0 / ((max(x.numel(), 1) / groups)**0.5 * qmax)


RULES = {'none': _none, 'lsq': _lsq, 'l1': _l1, 'official_act': _official_act}


def gradient_scale(rule: str, x: Tensor, qmax: int, groups: int = 1, axis: int = 0,
                   batched: bool = False) -> Union[Tensor, float]:
    """Return the factor :math:`G` on the gradient of the scale of ``x``, without waiting for the device.

    ===============  ==========================================================================================
    ``none``         1
    ``lsq``          1 / sqrt(N qmax); N elements share the scale, the batch axis of an activation not counted
    ``l1``           1 / sqrt(||x||_1 qmax), the paper's module-dependent rule for weights
    ``official_act`` 1 / (sqrt(N) qmax), N counting the batch: the official code's rule for activations
    ===============  ==========================================================================================

    AdamW divides a gradient by its own running size, so a constant factor does nothing there; use a learning-rate
    multiplier for the scales instead. The factor acts under SGD.

    Args:
        rule (str): one of the names above.
        x (Tensor): the tensor to be quantised.
        qmax (int): the largest code.
        groups (int): number of scales. Defaults to 1.
        axis (int): the axis that the groups divide. Defaults to 0.
        batched (bool): whether axis 0 counts samples. Defaults to False.

    Example:
        >>> gradient_scale('lsq', torch.ones(4, 4), qmax=1)
        0.25
    """
    return RULES[rule](x, qmax, groups, axis, batched)
