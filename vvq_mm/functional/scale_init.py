"""First values of scales, from samples of the tensor to be quantised."""
from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from .fake_quant import MIN_SCALE, dequantize, quantize
from .grid import IntGrid

CANDIDATES = 100  # of the bounded search: 4.8 % apart, from the full range down to a hundredth of it


class Statistics(NamedTuple):
    """What is known of a tensor: all float32, on its device.

    Args:
        values (Tensor): (groups, n), a sample of its elements that contains the extremes.
        mean_abs (Tensor): (groups,), the mean magnitude over all elements.
    """

    values: Tensor
    mean_abs: Tensor


def lsq_init(statistics: Statistics, grid: IntGrid) -> Tensor:
    """Return ``2 mean|x| / sqrt(qmax)`` (groups,), the rule of LSQ.

    Example:
        >>> lsq_init(Statistics(torch.ones(1, 2), torch.ones(1)), IntGrid(-4, 4))
        tensor([1.])
    """
    return 2 * statistics.mean_abs / grid.qmax**0.5


def percentile_init(statistics: Statistics, grid: IntGrid, percentile: float = 99.9) -> Tensor:
    """Return the scale (groups,) whose range ends at a percentile of the magnitudes."""
    magnitude = torch.quantile(statistics.values.abs(), percentile / 100, dim=1)
    return magnitude / max(grid.qmax, 1)


def least_squares_init(statistics: Statistics, grid: IntGrid, iterations: int = 100, tolerance: float = 1e-5) -> Tensor:
    """Return the official code's scale of a weight: ``a <- <w, q> / <q, q>`` from ``max|w| / qmax``, a bounded search.

    The official code has no bound and stops when the relative step is below 1e-5; at 6 to 8 bits that takes thousands
    of rounds.
    """
    values = statistics.values
    scale = values.abs().amax(1) / grid.qmax
    for _ in range(iterations):
        codes = quantize(values, scale, None, grid)
        better = (values * codes).sum(1) / (codes * codes).sum(1).clamp_min(1e-12)
        done = ((better - scale).abs() / better.abs().clamp_min(1e-12) < tolerance).all()
        scale = better
        if done:
            break
    return scale


def mse_init(statistics: Statistics, grid: IntGrid, use_offset: bool) -> Tuple[Tensor, Optional[Tensor]]:
    """Return the scale, and the offset if asked for, of the smallest squared error among 100 ranges.

    The candidates are fractions of the full range (log-spaced down to 1/100), the full range among them, so the result
    is never worse than it. An offset puts the smallest code at the smallest value (LSQ+).

    Example:
        >>> mse_init(Statistics(torch.tensor([[-2., -1., 0., 1.]]), torch.ones(1)), IntGrid(-2, 1), False)[0]
        tensor([1.])
    """
    values = statistics.values
    low, high = values.amin(1), values.amax(1)
    if use_offset:
        full = (high - low) / (grid.levels - 1)
    else:
        full = torch.maximum(high / grid.qmax, low / grid.qmin if grid.qmin else torch.zeros_like(low))
    full = full.clamp_min(MIN_SCALE)
    best_error = torch.full_like(full, float('inf'))
    best_scale, best_offset = full, None
    for fraction in torch.logspace(0, -2, CANDIDATES).tolist():
        scale = full * fraction
        offset = low - grid.qmin * scale if use_offset else None
        error = (dequantize(quantize(values, scale, offset, grid), scale, offset) - values).square().mean(1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    best_offset = low - grid.qmin * best_scale if use_offset else None
    return best_scale, best_offset


def initial_scale(rule: str, statistics: Statistics, grid: IntGrid, use_offset: bool,
                  kind: str) -> Tuple[Tensor, Optional[Tensor]]:
    """Return scale and offset (groups,) by the named rule; an offset starts at 0 unless the rule searches it.

    Args:
        rule (str): ``mse``, ``percentile``, ``lsq`` or ``official``.
        statistics (Statistics): of the tensor.
        grid (IntGrid): limits of the codes.
        use_offset (bool): whether the quantizer has an offset.
        kind (str): ``weight`` or ``act``; the official rule differs.
    """
    offset = torch.zeros_like(statistics.mean_abs) if use_offset else None
    if rule == 'mse':
        scale, offset = mse_init(statistics, grid, use_offset)
    elif rule == 'percentile':
        scale = percentile_init(statistics, grid)
    elif rule == 'lsq':
        scale = lsq_init(statistics, grid)
    elif kind == 'weight':
        scale = least_squares_init(statistics, grid)
    else:
        # the official code takes the signed limit even where codes are unsigned: half as many levels
        scale = lsq_init(statistics, IntGrid(0, (grid.levels >> 1) - 1))
    return scale.clamp_min(MIN_SCALE), offset


RULES = ('mse', 'percentile', 'lsq', 'official')
