"""Products of quantised operands on their integer codes, with integer accumulation.

With :math:`\\hat a = s_a q_a + \\beta_a` and :math:`\\hat b = s_b q_b + \\beta_b`,

.. math::
    (\\hat a \\hat b)_{mn} = s_a s_b \\sum_k q_a q_b + \\beta_a s_b \\sum_k q_b + \\beta_b s_a \\sum_k q_a
                           + K \\beta_a \\beta_b

where scale and offset are constant along the summed axis. Codes have at most 8 bits, so the sums are exact.
"""
from typing import NamedTuple, Optional

import torch
from torch import Tensor

CENTRE = 128  # subtracted from unsigned 8-bit codes, so that they fit into int8
MULTIPLE = 8  # what CUDA's int8 product wants of the summed and of the last axis
FEWEST_ROWS = 17  # and of the first
EXACT_FLOAT = 2**24  # whole numbers up to here are exact in float32
# The product of floats, by a name that a torch function mode watching for torch.matmul (quantised attention) lets pass
matmul = torch.ops.aten.matmul.default


def float_product(a: Tensor, b: Tensor, transposed: bool) -> Tensor:
    """Return the float matrix product ``a b``, or ``a b^T`` if ``transposed``, with contiguous gradients.

    Args:
        a (Tensor): (..., M, K).
        b (Tensor): (..., K, N), or (..., N, K) if ``transposed``.
        transposed (bool): see above.
    """
    return _TransposedProduct.apply(a, b) if transposed else matmul(a, b)


class _TransposedProduct(torch.autograd.Function):
    """The gradient of ``b`` has the layout of ``b``; autograd's own is a transposed view, slow to go on with."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return matmul(a, b.mT)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        return (matmul(grad, b) if ctx.needs_input_grad[0] else None,
                matmul(grad.mT, a) if ctx.needs_input_grad[1] else None)


class IntegerOperand(NamedTuple):
    """One factor of a product as integers.

    Args:
        codes (Tensor): int8, a matrix or a batch of matrices.
        scale (Tensor): float32, broadcastable to ``codes`` and of length 1 along the summed axis.
        offset (Tensor, optional): like ``scale``, the value of code 0.
        shift (int): what was subtracted from the codes to fit them into int8. Defaults to 0.
    """

    codes: Tensor
    scale: Tensor
    offset: Optional[Tensor] = None
    shift: int = 0

    @classmethod
    def of(cls, codes: Tensor, scale: Tensor, offset: Optional[Tensor] = None) -> 'IntegerOperand':
        """Return the operand of int8 or uint8 ``codes``; uint8 is shifted into int8."""
        if codes.dtype == torch.uint8:
            return cls((codes.to(torch.int16) - CENTRE).to(torch.int8), scale, offset, CENTRE)
        return cls(codes, scale, offset)

    @property
    def mT(self) -> 'IntegerOperand':
        """The operand with its last two axes exchanged."""
        return self._replace(codes=self.codes.mT, scale=self.scale.mT,
                             offset=None if self.offset is None else self.offset.mT)

    def values(self, dtype: torch.dtype) -> Tensor:
        """Return ``(codes + shift) * scale + offset``, computed in float32, in ``dtype``."""
        codes = self.codes.to(self.scale.dtype)
        values = (codes + self.shift if self.shift else codes) * self.scale
        return (values if self.offset is None else values + self.offset).to(dtype)

    def sums(self, axis: int) -> Tensor:
        """Return the sums of the codes, unshifted, along the axis that a product sums over: exact, int32."""
        return self.codes.sum(axis, keepdim=True, dtype=torch.int32) + self.shift * self.codes.shape[axis]


def integer_product(a: Tensor, b: Tensor, left: IntegerOperand, right: IntegerOperand, dtype: torch.dtype) -> Tensor:
    """Return the matrix product of two quantised operands, computed on their codes; differentiable in ``a`` and ``b``.

    ``a`` and ``b`` are the fake-quantised values that the codes stand for. Forward does not read them (a compiler never
    computes them); backward sends them the gradients of the float product. What is kept for backward are the codes.

    Args:
        a (Tensor): (..., M, K) floating point.
        b (Tensor): (..., K, N), or (K, N) for all of ``a``.
        left (IntegerOperand): what ``a`` stands for.
        right (IntegerOperand): what ``b`` stands for.
        dtype (torch.dtype): of the result.

    Returns:
        Tensor: (..., M, N).

    Example:
        >>> codes = torch.tensor([[1, 2]], dtype=torch.int8)
        >>> operand = IntegerOperand(codes, torch.full((1, 1), 0.5))
        >>> integer_product(operand.values(torch.float), operand.mT.values(torch.float), operand, operand.mT,
        ...                 torch.float)
        tensor([[1.2500]])
    """
    return _IntegerProduct.apply(a, b, *left[:3], *right[:3], left.shift, right.shift, dtype)


class _IntegerProduct(torch.autograd.Function):
    """Forward on codes; backward in the dtype of the gradient, on values made from the codes again."""

    @staticmethod
    def forward(ctx, a, b, a_codes, a_scale, a_offset, b_codes, b_scale, b_offset, a_shift, b_shift, dtype):
        ctx.save_for_backward(a_codes, a_scale, a_offset, b_codes, b_scale, b_offset)
        ctx.shifts = a_shift, b_shift
        left = IntegerOperand(a_codes, a_scale, a_offset, a_shift)
        right = IntegerOperand(b_codes, b_scale, b_offset, b_shift)
        product = _sum_of_codes(left, right).to(a_scale.dtype) * (a_scale * b_scale)
        if a_offset is not None:
            product = product + a_offset * (b_scale * right.sums(-2))
        if b_offset is not None:
            product = product + b_offset * (a_scale * left.sums(-1))
        if a_offset is not None and b_offset is not None:
            product = product + a_codes.shape[-1] * (a_offset * b_offset)
        return product.to(dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        saved = ctx.saved_tensors
        left, right = IntegerOperand(*saved[:3], ctx.shifts[0]), IntegerOperand(*saved[3:], ctx.shifts[1])
        grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_a = matmul(grad, right.values(grad.dtype).mT)
        if ctx.needs_input_grad[1]:
            a = left.values(grad.dtype)
            if right.codes.dim() == 2:  # one matrix for all of a
                a, grad = a.flatten(0, -2), grad.flatten(0, -2)
            # transposed twice: the gradient of a weight, whose transpose b is, comes out contiguous
            grad_b = matmul(grad.mT, a).mT
        return (grad_a, grad_b) + (None, ) * 9


def _sum_of_codes(left: IntegerOperand, right: IntegerOperand) -> Tensor:
    """Return the sum over k of the products of unshifted codes: whole numbers, exact."""
    total = int_matmul(left.codes, right.codes)
    if left.shift:
        total = total + left.shift * right.codes.sum(-2, keepdim=True, dtype=torch.int32)
    if right.shift:
        total = total + right.shift * left.sums(-1)  # of unshifted codes: the product of both shifts is in there
    return total


def int_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return the exact product of int8 matrices, (..., M, K) with (..., K, N) or (K, N).

    Whole matrices go to the int8 kernel of the device, padded with zeros where it wants so. Batches of small matrices
    (attention) go there one by one on a CPU; other devices have no batched int8 kernel, and multiply the codes as
    floats, which is as exact: codes are whole numbers below 2**8 and their sums below 2**24.

    Returns:
        Tensor: (..., M, N), whole numbers, int32 or float32.
    """
    if b.dim() == 2:
        return _int_mm(a.flatten(0, -2), b).view(*a.shape[:-1], b.shape[-1])
    batch = a.shape[:-2]
    a, b = a.flatten(0, -3), b.flatten(0, -3)
    product = int_bmm(a, b) if a.device.type == 'cpu' else _float_bmm(a, b)
    return product.view(*batch, *product.shape[1:])


def _int_mm(a: Tensor, b: Tensor) -> Tensor:
    """Return the int32 product of two int8 matrices; on CUDA of padded ones."""
    rows, depth, columns = a.shape[0], a.shape[1], b.shape[1]
    if 0 in (rows, depth, columns):
        return torch.zeros(rows, columns, dtype=torch.int32, device=a.device)
    if a.device.type == 'cuda':
        more_depth = -depth % MULTIPLE
        a = torch.nn.functional.pad(a, (0, more_depth, 0, max(FEWEST_ROWS - rows, 0)))
        b = torch.nn.functional.pad(b, (0, -columns % MULTIPLE, 0, more_depth))
    return torch._int_mm(a, b)[:rows, :columns]


def _float_bmm(a: Tensor, b: Tensor) -> Tensor:
    """Return the exact product of batches of int8 matrices, computed on floats."""
    if a.shape[-1] * CENTRE**2 > EXACT_FLOAT:
        return torch.bmm(a.double(), b.double()).float()
    if a.device.type == 'cuda':  # tensor cores: bfloat16 holds whole numbers up to 256
        return torch.bmm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32)
    return torch.bmm(a.float(), b.float())


@torch.library.custom_op('vvq_mm::int_bmm', mutates_args=())
def int_bmm(a: Tensor, b: Tensor) -> Tensor:
    """Return the int32 product of batches of int8 matrices, (B, M, K) with (B, K, N): one kernel call per matrix.

    An operator of its own, so that a compiler sees one node and not B.
    """
    product = a.new_zeros(a.shape[0], a.shape[1], b.shape[2], dtype=torch.int32)
    if product.numel() and a.shape[2]:
        for left, right, out in zip(a, b, product):
            torch._int_mm(left, right, out=out)
    return product


@int_bmm.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], a.shape[1], b.shape[2], dtype=torch.int32)
