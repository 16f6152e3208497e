"""Fake quantisation: the only place where divide, clip, round and multiply are written.

Learned step size quantisation with a straight-through estimator (LSQ, arXiv 1902.08153), with an optional learned
offset (LSQ+, arXiv 2004.09576), as used by arXiv 2307.00331. All arithmetic is float32 (float64 for float64 input).
"""
from typing import Optional, Union

import torch
from torch import Tensor

from .grid import IntGrid
from .groups import expand_groups, split_groups

# A scale below this is treated as this in forward, while its gradient passes: the scale is positive by construction and
# can come back. A weight or activation of a trained transformer has scales of 1e-3 to 1.
MIN_SCALE = 1e-5


def positive_scale(scale: Tensor) -> Tensor:
    """Return the scale that forward uses, at least ``MIN_SCALE``; not differentiable, see :func:`fake_quantize`."""
    return scale.detach().clamp_min(MIN_SCALE)


def quantize(x: Tensor, scale: Tensor, offset: Optional[Tensor], grid: IntGrid, axis: int = 0) -> Tensor:
    """Return the integer codes ``round(clip((x - offset) / scale))`` of ``x`` as floats; half rounds to even.

    Args:
        x (Tensor): any shape, floating point.
        scale (Tensor): (groups,), the step size in units of ``x``.
        offset (Tensor, optional): (groups,), the value of code 0 in units of ``x``.
        grid (IntGrid): limits of the codes.
        axis (int): the axis of ``x`` that the groups divide. Defaults to 0.

    Example:
        >>> quantize(torch.tensor([0.4, 0.6, 9.]), torch.tensor([1.]), None, IntGrid(-2, 1))
        tensor([0., 1., 1.])
    """
    return grid_position(x, scale, offset, axis).clamp_(grid.qmin, grid.qmax).round_()


def dequantize(codes: Tensor, scale: Tensor, offset: Optional[Tensor], axis: int = 0) -> Tensor:
    """Return the values ``codes * scale + offset``; the inverse of :func:`quantize` on the grid."""
    values = codes * expand_groups(positive_scale(scale), codes.shape, axis)
    return values if offset is None else values + expand_groups(offset.detach(), codes.shape, axis)


def fake_quantize(x: Tensor,
                  scale: Tensor,
                  offset: Optional[Tensor],
                  grid: IntGrid,
                  axis: int = 0,
                  gradient_scale: Union[Tensor, float] = 1.0) -> Tensor:
    r"""Return ``x`` moved to the nearest value of its grid, differentiable in ``x``, ``scale`` and ``offset``.

    With :math:`v = (x - \beta) / s` and :math:`q = \mathrm{round}(\mathrm{clip}(v))`, the value is :math:`q s + \beta`
    and

    .. math::
        \partial y / \partial x = [q_{min} \le v \le q_{max}], \quad
        \partial y / \partial s = G\,(q - v\,[q_{min} \le v \le q_{max}]), \quad
        \partial y / \partial \beta = 1 - [q_{min} \le v \le q_{max}].

    Args:
        x (Tensor): any shape and floating dtype; the result has the same.
        scale (Tensor): (groups,) float32, the step size in units of ``x``; values below 1e-5 act as 1e-5.
        offset (Tensor, optional): (groups,) float32, the value of code 0.
        grid (IntGrid): limits of the codes.
        axis (int): the axis of ``x`` that the groups divide. Defaults to 0.
        gradient_scale (Tensor | float): :math:`G`, a number or (groups,); acts on the scale alone. Defaults to 1.

    Example:
        >>> fake_quantize(torch.tensor([0.4, 0.6, 9.]), torch.tensor([0.5]), None, IntGrid(-2, 1))
        tensor([0.5000, 0.5000, 0.5000])
    """
    return _FakeQuantize.apply(x, scale, offset, grid, axis, gradient_scale)


def grid_position(x: Tensor, scale: Tensor, offset: Optional[Tensor], axis: int) -> Tensor:
    """Return ``(x - offset) / scale`` in float32 or wider: the position of ``x`` on the grid, in codes."""
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    if offset is not None:
        x = x - expand_groups(offset.detach(), x.shape, axis)
    return x / expand_groups(positive_scale(scale), x.shape, axis)


class _FakeQuantize(torch.autograd.Function):
    """Saves the input alone, in its own dtype, and recomputes the position on the grid in backward."""

    @staticmethod
    def forward(ctx, x, scale, offset, grid, axis, gradient_scale):
        ctx.save_for_backward(x, scale, offset, gradient_scale if isinstance(gradient_scale, Tensor) else None)
        ctx.grid, ctx.axis, ctx.gradient_scale = grid, axis, gradient_scale
        return dequantize(quantize(x, scale, offset, grid, axis), scale, offset, axis).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, scale, offset, gradient_scale = ctx.saved_tensors
        if torch.compiler.is_compiling():
            # x itself, but in need of the gradient: or the compiler would make mask and slope in forward and keep them
            x = torch.where(grad == grad, x, grad)
        position = grid_position(x, scale, offset, ctx.axis)
        clipped = position.clamp(ctx.grid.qmin, ctx.grid.qmax)
        inside = position.eq_(clipped)  # 1 or 0 in the dtype of the position: no type changes in what follows
        wide = grad.to(clipped.dtype)
        grad_inside = wide * inside
        grad_scale = grad_offset = None
        if ctx.needs_input_grad[1]:
            # codes - clipped * inside; the clipped position, since an infinite one times 0 would not be a number
            slope = clipped.round().addcmul_(clipped, inside, value=-1)
            grad_scale = _total(wide, slope, scale.shape[0], ctx.axis)
            grad_scale = grad_scale * (ctx.gradient_scale if gradient_scale is None else gradient_scale)
        if offset is not None and ctx.needs_input_grad[2]:
            grad_offset = _total(wide, 1 - inside, scale.shape[0], ctx.axis)
        return grad_inside.to(grad.dtype), grad_scale, grad_offset, None, None, None


def _total(grad: Tensor, slope: Tensor, groups: int, axis: int) -> Tensor:
    """Return the sum of ``grad * slope`` over each group, (groups,)."""
    if groups == 1 and not torch.compiler.is_compiling():  # in one pass; the compiler fuses the other form itself
        return torch.dot(grad.reshape(-1), slope.reshape(-1)).view(1)
    if groups == 1 and grad.dim() > 2:
        return (grad * slope).sum(-1).sum().view(1)
    return split_groups(grad * slope, groups, axis).sum(1)
