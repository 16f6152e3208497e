"""Linear and convolution layers with the slots ``weight`` and ``input``. Biases stay in float."""
from typing import Optional, Tuple

import torch.nn.functional as F
from torch import Tensor, nn

from .product import ProductMixin


class WeightedMixin(ProductMixin):
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
        return self.linear(x, self.bias)

    def linear(self, x: Tensor, bias: Optional[Tensor]) -> Tensor:
        """Return the layer's product with ``bias``, which an attention around it may give in place of its own."""
        if self.matmul == 'float':
            return F.linear(*self.operands(x), bias)
        y = self.product('input', x, 'weight', self.weight, transposed=True)
        return y if bias is None else y + bias.to(y.dtype)


class ConvMixin(WeightedMixin):
    """``nn.Conv2d`` (and subclasses) on quantised operands.

    Where no two windows overlap (patch embedding), it is a product of patches with the flattened kernel: its gradient
    with respect to the image, which the scale of the image needs, is then ten times cheaper than a convolution's.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_product(x):
            return self._conv_forward(*self.operands(x), self.bias)
        image, kernel = self.operands(x)
        y = F.linear(tiles(image, self.kernel_size), kernel.flatten(1), self.bias)
        return y.permute(0, 3, 1, 2)

    def is_product(self, x: Tensor) -> bool:
        """Return whether the windows tile the image."""
        whole = x.dim() == 4 and all(size % step == 0 for size, step in zip(x.shape[-2:], self.kernel_size))
        return (whole and self.stride == self.kernel_size and self.groups == 1 and tuple(self.dilation) == (1, 1)
                and tuple(self.padding) == (0, 0))


def tiles(image: Tensor, size: Tuple[int, int]) -> Tensor:
    """Return the tiles of an image (B, C, H, W) as (B, H / size, W / size, C * size * size)."""
    batch, channels, height, width = image.shape
    rows, columns = height // size[0], width // size[1]
    image = image.reshape(batch, channels, rows, size[0], columns, size[1]).permute(0, 2, 4, 1, 3, 5)
    return image.reshape(batch, rows, columns, channels * size[0] * size[1])


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
