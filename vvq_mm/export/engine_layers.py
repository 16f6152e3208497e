"""Weighted layers that multiply frozen codes: what :func:`vvq_mm.export.engine.integer_engine` puts into a model."""
from typing import Optional

import torch
from torch import Tensor, nn

from vvq_mm.functional.frozen_product import FrozenWeight, frozen_product
from vvq_mm.functional.groups import expand_groups
from vvq_mm.functional.integer_product import IntegerOperand
from vvq_mm.layers import swap_, unswap_
from vvq_mm.layers.weighted import ConvMixin, LinearMixin, WeightedMixin, tiles
from vvq_mm.quantizers import Quantizer


class FrozenMixin(WeightedMixin):
    """A weighted layer without a float weight: ``frozen_codes`` (N, K) int8, and what was folded beside them.

    ``weight`` stays as an empty parameter, since an attention recognises its layers by the identity of their weights.
    """

    def linear(self, x: Tensor, bias: Optional[Tensor]) -> Tensor:
        """Return the layer's product with ``bias``, which an attention around it may give in place of its own."""
        weight = FrozenWeight(*(getattr(self, f'frozen_{field}') for field in FrozenWeight._fields))
        y = frozen_product(_input(self.input_quantizer, x).codes, weight)
        return y if bias is None else y + bias


class FrozenLinearMixin(FrozenMixin, LinearMixin):
    """``nn.Linear`` on frozen codes."""


class FrozenConvMixin(FrozenMixin, ConvMixin):
    """``nn.Conv2d`` on frozen codes, for images that its windows tile (patch embedding)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(tiles(x, self.kernel_size), self.bias).permute(0, 3, 1, 2)


def layer_obstacle(layer: WeightedMixin) -> str:
    """Return why a layer cannot run on frozen codes, or an empty string."""
    weight, input = layer.weight_quantizer, layer.input_quantizer
    if weight is None or input is None:
        return f'{"input" if input is None else "weight"} is in float'
    if weight.groups > 1 and weight.axis % layer.weight.dim():
        return 'the scale of weight varies along the summed axis'
    if input.groups > 1:
        return f'input has {input.groups} scales'
    if isinstance(layer, ConvMixin) and not layer.is_product(_smallest_image(layer)):
        return 'it is a convolution whose windows do not tile the image'
    return ''


@torch.no_grad()
def freeze_codes_(layer: WeightedMixin) -> None:
    """Let a layer without :func:`layer_obstacle` run on frozen codes from now on, in place."""
    quantizer, input_quantizer = layer.weight_quantizer, layer.input_quantizer
    codes, scale = quantizer.codes(layer.weight).flatten(1), quantizer.effective_scale()
    scale, offset = (None if values is None else expand_groups(values, codes.shape, 0)
                     for values in (scale, quantizer.offset))
    frozen = FrozenWeight.of(IntegerOperand.of(codes, scale, offset),
                             _input(input_quantizer, layer.weight.new_zeros(1)))
    unswap_(layer)
    swap_(layer, FrozenConvMixin if isinstance(layer, nn.Conv2d) else FrozenLinearMixin, dict(input=input_quantizer))
    layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)
    for field, values in frozen._asdict().items():
        layer.register_buffer(f'frozen_{field}', values)


@torch.no_grad()
def freeze_values_(layer: WeightedMixin) -> None:
    """Replace the latent weight of a layer by its fake-quantised values, in place; the input is quantised as before."""
    if layer.weight_quantizer is not None:
        layer.weight = nn.Parameter(layer.weight_quantizer(layer.weight), requires_grad=False)
        layer.weight_quantizer = None


def _input(quantizer: Quantizer, x: Tensor) -> IntegerOperand:
    """Return an activation with one scale as integers."""
    return IntegerOperand.of(quantizer.codes(x), quantizer.effective_scale(), quantizer.offset)


def _smallest_image(layer: nn.Conv2d) -> Tensor:
    return torch.empty(1, layer.in_channels, *layer.kernel_size, device='meta')
