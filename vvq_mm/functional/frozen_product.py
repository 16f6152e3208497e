"""The product of quantised activations with a weight that no longer changes: all that is constant is computed once.

With :math:`\\hat a = s_a c_a + \\beta_a` (one scale and offset) and :math:`\\hat w = s_w c_w + \\beta_w` (one of each
for an output channel n), where the codes c are int8 and what shifted them into int8 is part of the offset,

.. math::
    \\sum_k \\hat a_{mk} \\hat w_{nk} =
    s_a s_w \\sum_k c_a c_w + \\beta_a \\sum_k \\hat w_{nk} + s_a \\beta_w \\sum_k c_a .

The second term is a constant of the channel. The third needs a sum over each row of activations, and vanishes for
weights without offset.
"""
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from .integer_product import IntegerOperand, int_matmul


class FrozenWeight(NamedTuple):
    """A weight, ready to be multiplied by the codes of one input.

    Args:
        codes (Tensor): (N, K) int8.
        scale (Tensor): (N,) float32, of the sums of products of codes.
        constant (Tensor, optional): (N,) float32, added to each sum.
        row_scale (Tensor, optional): (N,) float32, factor of the sum of a row of activation codes.
    """

    codes: Tensor
    scale: Tensor
    constant: Optional[Tensor] = None
    row_scale: Optional[Tensor] = None

    @classmethod
    def of(cls, weight: IntegerOperand, input: IntegerOperand) -> 'FrozenWeight':
        """Fold what is constant, in float64.

        Args:
            weight (IntegerOperand): codes (N, K); scale and offset of one element, or (N, 1).
            input (IntegerOperand): of any activation: scale, offset (one element each) and shift are read.

        Example:
            >>> weight = IntegerOperand(torch.tensor([[1, 2]], dtype=torch.int8), torch.tensor(0.5))
            >>> FrozenWeight.of(weight, weight._replace(offset=torch.tensor(1.))).constant
            tensor([1.5000])
        """
        rows = weight.codes.shape[0]
        w_scale, w_offset = (values.expand(rows) for values in _scale_and_offset(weight))
        a_scale, a_offset = _scale_and_offset(input)
        sums = weight.codes.sum(1, dtype=torch.int64) * w_scale + weight.codes.shape[1] * w_offset
        terms = a_scale * w_scale, a_offset * sums, a_scale * w_offset
        scale, constant, row_scale = (term.to(torch.float32).contiguous() for term in terms)
        return cls(weight.codes.contiguous(), scale, constant if constant.any() else None,
                   row_scale if row_scale.any() else None)


def _scale_and_offset(operand: IntegerOperand) -> tuple:
    """Return scale and offset of the codes as they are stored, flat and in float64."""
    scale = operand.scale.double().flatten()
    offset = torch.zeros_like(scale) if operand.offset is None else operand.offset.double().flatten()
    return scale, offset + operand.shift * scale


def frozen_product(codes: Tensor, weight: FrozenWeight) -> Tensor:
    """Return the product of the activations that ``codes`` stand for with the transposed weight.

    Args:
        codes (Tensor): (..., K) int8, shifted as the input was that the weight was folded with.
        weight (FrozenWeight): of shape (N, K).

    Returns:
        Tensor: (..., N) float32.
    """
    product = int_matmul(codes, weight.codes.mT) * weight.scale
    if weight.constant is not None:
        product = product + weight.constant
    if weight.row_scale is not None:
        product = product + codes.sum(-1, keepdim=True, dtype=torch.int32) * weight.row_scale
    return product
