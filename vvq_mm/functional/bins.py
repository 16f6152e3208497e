"""Oscillation-aware regularisation of latent weights, from integer codes: bin regularisation and dampening.

Bin membership is the integer code itself. Testing ``(codes * scale) / scale == bin`` in floating point, as the official
code does, loses whole bins for many scales.
"""
from typing import Optional, Tuple, Union

import torch
from torch import Tensor

from .fake_quant import grid_position, positive_scale
from .grid import IntGrid
from .groups import expand_groups

REDUCTIONS = ('sum', 'mean')


def bin_loss(weight: Tensor,
             codes: Optional[Tensor],
             scale: Tensor,
             grid: IntGrid,
             axis: int = 0,
             reduction: str = 'sum',
             gradient_scale: Union[Tensor, float] = 1.0) -> Tensor:
    r"""Return the quantisation error of a weight plus the variance of the latent weights inside each bin.

    With :math:`w^r = \mathrm{clip}(w / s) s`, :math:`w^q` its quantised value (no gradient) and :math:`b` the bins
    (arXiv 2307.00331)

    .. math::
        L = \lVert w^r - w^q \rVert_2^2 + \sum_{b:\,n_b > 1} \mathrm{Var}(w^r \mid w^r \in b)

    with the unbiased variance. A weight outside the grid sits on its last bin, and its gradient flows to the scale.

    The variance in a bin is that of the residual :math:`r = w^r - w^q`, so three moments per bin give the loss, and the
    gradient is a table look-up: :math:`\partial L / \partial w^r = A_b r + B_b`. Nothing waits for the device, and two
    numbers per bin are kept for backward.

    Args:
        weight (Tensor): latent weight, any shape, floating point.
        codes (Tensor, optional): integer codes, of the weight's shape; None for those of the weight itself, which are
            then computed on the way, also in backward, and nothing is kept.
        scale (Tensor): (groups,), the step size; each group has bins of its own.
        grid (IntGrid): limits of the codes.
        axis (int): the axis of the weight that the groups divide. Defaults to 0.
        reduction (str): ``sum`` is the formula above; ``mean`` divides the first term by the number of weights, as the
            official code does (util_loss.py). Defaults to ``sum``.
        gradient_scale (Tensor | float): factor on the gradient of the scale, a number or (groups,). Defaults to 1.

    Example:
        >>> bin_loss(torch.tensor([0.5, 0.75, 1.]), torch.tensor([0, 1, 1]), torch.tensor([1.]), IntGrid(-2, 1))
        tensor(0.3438)
    """
    return _BinLoss.apply(weight, scale, codes, grid, axis, reduction, gradient_scale)


def dampening_loss(weight: Tensor,
                   codes: Tensor,
                   scale: Tensor,
                   grid: IntGrid,
                   axis: int = 0,
                   reduction: str = 'sum') -> Tensor:
    r"""Return the squared distance of each latent weight to its quantised value (arXiv 2203.11086, equation 7).

    Only weights inside the grid get a gradient; the scale gets none. Arguments as in :func:`bin_loss`.

    Example:
        >>> dampening_loss(torch.tensor([0.5, 0.75, 9.]), torch.tensor([0, 1, 1]), torch.tensor([1.]), IntGrid(-2, 1))
        tensor(0.3125)
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    step = expand_groups(positive_scale(scale), weight.shape, axis)
    position = grid_position(weight, scale, None, axis)
    clipped = position.clamp(grid.qmin, grid.qmax)
    error = (torch.where(position == clipped, wide, clipped * step) - codes * step).square()
    return error.sum() if reduction == 'sum' else error.mean()


class _BinLoss(torch.autograd.Function):
    """Keeps two numbers per bin; positions, bins and residuals (all in codes) are computed again in backward."""

    @staticmethod
    def forward(ctx, weight, scale, codes, grid, axis, reduction, gradient_scale):
        _, residual, bins, _ = _place(weight, scale, codes, grid, axis)
        count, first, second = _moments(residual, bins, scale.shape[0], grid.levels)
        step = positive_scale(scale).view(-1, 1)
        total = weight.numel() if reduction == 'mean' else 1
        freedom = (count - 1).clamp_min(1)
        several = count > 1
        variance = (second - first.square() / count.clamp_min(1)).clamp_min(0) / freedom
        slope = step * (2 / total + several * 2 / freedom)
        shift = step * (several * -2 * first / (count.clamp_min(1) * freedom))
        ctx.save_for_backward(weight, scale, codes, slope, shift)
        ctx.grid, ctx.axis, ctx.gradient_scale = grid, axis, gradient_scale
        return (step.square() * (second / total + variance * several)).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        weight, scale, codes, slope, shift = ctx.saved_tensors
        clipped, residual, bins, inside = _place(weight, scale, codes, ctx.grid, ctx.axis)
        repeat = residual.shape[0] // scale.shape[0]
        slope, shift = ((grad * table).repeat_interleave(repeat, 0) for table in (slope, shift))
        grad_clipped = residual.mul_(slope.gather(1, bins)).add_(shift.gather(1, bins))
        grad_weight = grad_scale = None
        if ctx.needs_input_grad[1]:
            outside = (1 - inside).mul_(clipped).mul_(grad_clipped)
            grad_scale = (outside.reshape(scale.shape[0], -1).sum(1) * ctx.gradient_scale).to(scale.dtype)
        if ctx.needs_input_grad[0]:
            moved = weight.movedim(ctx.axis, 0).shape
            grad_weight = grad_clipped.mul_(inside).reshape(moved).movedim(0, ctx.axis).to(weight.dtype)
        return grad_weight, grad_scale, None, None, None, None, None


def _place(weight: Tensor, scale: Tensor, codes: Optional[Tensor], grid: IntGrid,
           axis: int) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return where weights are on the grid, as (length of the axis, rest): a row belongs to one group.

    Returns:
        tuple: clipped position, its distance to the bin's centre (both in codes), the number of the bin (int64), and
        1 for a weight inside the grid, 0 outside.
    """
    position = _rows(grid_position(weight, scale, None, axis), axis)
    clipped = position.clamp(grid.qmin, grid.qmax)
    centre = clipped.round() if codes is None else _rows(codes, axis).to(clipped.dtype)
    return clipped, clipped - centre, (centre - grid.qmin).long(), position.eq_(clipped)


def _rows(x: Tensor, axis: int) -> Tensor:
    return x.movedim(axis, 0).flatten(1) if x.dim() > 1 else x.reshape(-1, 1)


def _moments(residual: Tensor, bins: Tensor, groups: int, levels: int) -> Tuple[Tensor, Tensor, Tensor]:
    """Return count, sum and sum of squares of the residual in each bin, each (groups, levels); rows keep sums short."""
    def total(values):
        table = residual.new_zeros(residual.shape[0], levels).scatter_add_(1, bins, values)
        return table.view(groups, -1, levels).sum(1)

    return total(residual.new_ones(()).expand_as(residual)), total(residual), total(residual.square())
