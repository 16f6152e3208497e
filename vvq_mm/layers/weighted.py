"""Linear and convolution layers with the slots ``weight`` and ``input``. Biases stay in float."""
from typing import Optional

import torch.nn.functional as F
from torch import Tensor, nn

from .swap import SlotMixin


class WeightedMixin(SlotMixin):
    """Quantised operands of a weighted layer."""

    SLOTS = ('weight', 'input')

    def operands(self, x: Tensor):
        """Return input and weight as the product sees them.

        A weight in float is handed on as a view: an attention that wraps this layer recognises calls that bypass it by
        the identity of the weight, see :mod:`vvq_mm.layers.attention`.
        """
        weight = self.slot('weight', self.weight)
        weight = weight.view_as(weight) if weight is self.weight else weight
        return self.slot('input', x), weight


class LinearMixin(WeightedMixin):
    """``nn.Linear`` (and subclasses) on quantised operands."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(*self.operands(x), self.bias)


class ConvMixin(WeightedMixin):
    """``nn.Conv2d`` (and subclasses) on quantised operands."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(*self.operands(x), self.bias)


MIXINS = {nn.Linear: LinearMixin, nn.Conv2d: ConvMixin}
# Whose forward is the plain product; the wrappers only look after empty batches and dtypes.
PLAIN = ('torch.nn.modules', 'mmcv.cnn.bricks.wrappers', 'timm.layers.linear', __name__)


def weighted_mixin(module: nn.Module) -> Optional[type]:
    """Return the mixin for a weighted layer, or None for any other module.

    A subclass with a forward of its own (padding, weight standardisation) would lose it, so it is none of these.
    """
    if not type(module).forward.__module__.startswith(PLAIN):
        return None
    return next((mixin for base, mixin in MIXINS.items() if isinstance(module, base)), None)
