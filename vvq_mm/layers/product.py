"""The product of two slots: in floats, or on integer codes where policy, quantizers and device allow it."""
import logging
from functools import lru_cache
from typing import Optional

import torch
from torch import Tensor

from vvq_mm.errors import QuantizationError
from vvq_mm.functional.groups import expand_groups
from vvq_mm.functional.integer_product import IntegerOperand, float_product, integer_product
from vvq_mm.quantizers import Quantizer

from .swap import SLOT_SUFFIX, SlotMixin

MATMULS = ('float', 'int8')


class ProductMixin(SlotMixin):
    """A module that multiplies slots.

    Attributes:
        matmul (str): ``float``, or ``int8`` for integer products in forward (backward is in the training dtype).
        strict (bool): whether a product that cannot run on integers is an error instead of a float product.
        where (str): the name of the module, for messages.
    """

    matmul = 'float'
    strict = False
    where = 'a module'

    def product(self, left: str, a: Tensor, right: str, b: Tensor, transposed: bool = False,
                factor: Optional[float] = None) -> Tensor:
        """Return ``Q(a) Q(b)``, or ``Q(a) Q(b)^T`` if ``transposed``, each through its slot.

        Args:
            left (str): slot of ``a``.
            a (Tensor): (..., M, K).
            right (str): slot of ``b``.
            b (Tensor): (..., K, N), (..., N, K) if ``transposed``, or a matrix for all of ``a``.
            transposed (bool): see above. Defaults to False.
            factor (float, optional): ``a`` was multiplied by this; its slot gets it without. Defaults to 1.
        """
        bare = a if factor is None else a / factor
        a_values, b_values = self.slot(left, bare), self.slot(right, b)
        a_values = a_values if factor is None else a_values * factor
        dtype = _result_dtype(a_values, b_values)
        a_values, b_values = a_values.to(dtype), b_values.to(dtype)
        if self.matmul == 'float' or not self._runs_on_integers(left, bare, right, b, transposed):
            return float_product(a_values, b_values, transposed)
        operands = self._operand(left, bare, factor), self._operand(right, b)
        if transposed:
            b_values, operands = b_values.mT, (operands[0], operands[1].mT)
        return integer_product(a_values, b_values, *operands, dtype=dtype)

    def _operand(self, slot: str, x: Tensor, factor: Optional[float] = None) -> IntegerOperand:
        """Return codes, scale and offset of a slot's tensor, as integers."""
        quantizer = getattr(self, slot + SLOT_SUFFIX)
        scale, offset = quantizer.expanded_scale(x), quantizer.expanded_offset(x)
        if factor is not None:
            scale, offset = scale * factor, None if offset is None else offset * factor
        return IntegerOperand.of(quantizer.codes(x), scale, offset)

    def _runs_on_integers(self, left: str, a: Tensor, right: str, b: Tensor, transposed: bool) -> bool:
        """Return whether this product can run on integers now; says why not, once, or raises if ``strict``."""
        quantizers = getattr(self, left + SLOT_SUFFIX), getattr(self, right + SLOT_SUFFIX)
        if any(quantizer is not None and quantizer.mode != 'quantize' for quantizer in quantizers):
            return False  # calibration, or the float function on purpose
        obstacle = operand_obstacle(left, quantizers[0], a, -1) or operand_obstacle(right, quantizers[1], b, -1 if transposed else -2)
        return _decide(f'{self.where} ({left}, {right})', obstacle, a.device.type, self.strict)


def _result_dtype(a: Tensor, b: Tensor) -> torch.dtype:
    """Return the dtype that the float product would have, also under autocast."""
    device = a.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(a.dtype, b.dtype)


def operand_obstacle(slot: str, quantizer: Optional[Quantizer], x: Tensor, summed: int) -> str:
    """Return why a slot's codes cannot be summed as they are, or an empty string."""
    if quantizer is None:
        return f'{slot} is in float'
    if quantizer.in_float is not None:
        return f'a part of {slot} is in float'
    if quantizer.groups > 1 and expand_groups(quantizer.scale, x.shape, quantizer.axis).shape[summed] > 1:
        return f'the scale of {slot} varies along the summed axis'
    return ''


@torch.compiler.assume_constant_result
def _decide(where: str, obstacle: str, device: str, strict: bool) -> bool:
    """Return whether a product runs on integers; a constant to the compiler, so that it may log and raise."""
    obstacle = obstacle or device_obstacle(device)
    if obstacle and strict:
        raise QuantizationError(f"expected {where} to run with matmul='int8', but {obstacle}; change that, or set "
                                'strict=False in the policy to let it run on floats')
    if obstacle:
        _say_once(where, obstacle)
    return not obstacle


@lru_cache(maxsize=None)
def _say_once(where: str, obstacle: str) -> None:
    logging.getLogger('vvq_mm').warning(f"matmul='int8': {where} runs on floats, since {obstacle}.")


@lru_cache(maxsize=None)
def device_obstacle(device: str) -> str:
    """Return why a kind of device (``cpu``, ``cuda``) has no fast int8 product, or an empty string."""
    if device == 'cpu':
        return '' if torch.cpu._is_vnni_supported() else 'this CPU has no int8 dot product (AVX512-VNNI or AVX-VNNI)'
    if device == 'cuda':
        return '' if torch.cuda.get_device_capability() >= (7, 5) else 'this GPU has no int8 tensor cores'
    return f'there is no int8 product for {device} devices'
