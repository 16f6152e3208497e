"""LSQ: a quantizer whose scale (and offset) is learned by gradient descent."""
from torch import Tensor

from vvq_mm.errors import QuantizationError
from vvq_mm.functional.fake_quant import fake_quantize
from vvq_mm.functional.gradient_scale import RULES, gradient_scale
from vvq_mm.registry import QUANTIZERS

from .base import Quantizer


@QUANTIZERS.register_module()
class LSQQuantizer(Quantizer):
    """Learned step size quantizer (arXiv 1902.08153); ``offset=True`` makes it LSQ+ (arXiv 2004.09576).

    Args:
        bits (int): width of the codes, 2 to 8.
        grad_scale (str): factor on the gradient of the scale: ``none``, ``lsq``, ``l1`` (the paper's module-dependent
            rule) or ``official_act``; see :func:`vvq_mm.functional.gradient_scale.gradient_scale`. Defaults to ``lsq``.
        **kwargs: arguments of :class:`Quantizer`.

    Example:
        >>> quantizer = LSQQuantizer(bits=4, kind='act')
        >>> quantizer
        LSQQuantizer(4 bit, signed, per tensor, not calibrated)
    """

    def __init__(self, bits: int, grad_scale: str = 'lsq', **kwargs) -> None:
        super().__init__(bits, **kwargs)
        if grad_scale not in RULES:
            raise QuantizationError(f'expected grad_scale to be one of {", ".join(RULES)}, got {grad_scale!r} for '
                                    f'{self.where}')
        self.grad_scale = grad_scale

    def fake_quantize(self, x: Tensor) -> Tensor:
        factor = gradient_scale(self.grad_scale, x, self.qmax, self.groups, self.axis, batched=self.kind == 'act')
        return fake_quantize(x, self.current_scale(), self.offset, self.grid, self.axis, factor)
