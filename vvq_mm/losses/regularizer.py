"""Regularisers of latent weights: summed over layers, times a weight that a hook sets from a schedule."""
from typing import Optional, Sequence

import torch
from torch import Tensor, nn

from vvq_mm.errors import QuantizationError
from vvq_mm.functional.bins import REDUCTIONS, bin_loss, dampening_loss
from vvq_mm.functional.gradient_scale import gradient_scale
from vvq_mm.registry import MODELS
from vvq_mm.weight_layers import WeightLayer, select_weights


class Regularizer(nn.Module):
    """Base of regularisers; a subclass writes :meth:`layer_loss` and names its entry in the log.

    The model's ``loss`` adds ``regularizer(model)`` under ``loss_name`` while ``active``: it is computed inside DDP and
    autocast, and costs nothing while its weight is 0.

    Args:
        reduction (str): ``sum`` or ``mean`` over the weights of a layer; layers are always added. Defaults to ``sum``.
        max_bits (int): widest weight to regularise. Defaults to 4, since an 8-bit layer has 256 bins and may be hurt.
        layers (sequence of str, optional): globs on the names of the layers to take. Defaults to all.
    """

    loss_name = 'loss_regularizer'

    def __init__(self, reduction: str = 'sum', max_bits: int = 4, layers: Optional[Sequence[str]] = None) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise QuantizationError(f'expected reduction to be one of {", ".join(REDUCTIONS)}, got {reduction!r} for '
                                    f'{type(self).__name__}')
        self.reduction, self.max_bits = reduction, max_bits
        self.layers = None if layers is None else list(layers)
        self.register_buffer('weight', torch.tensor(0.0), persistent=False)
        self.active = False

    def set_weight(self, value: float) -> None:
        """Set the factor on the loss; 0 switches it off. The device is not waited for."""
        self.weight.fill_(value)
        self.active = value != 0

    def forward(self, model: nn.Module) -> Tensor:
        """Return the weighted loss of the quantised weights of ``model``, a scalar."""
        chosen = select_weights(model, self.max_bits, self.layers)
        terms = [self.layer_loss(layer) for layer in chosen if layer.quantizer.ready]
        return self.weight * torch.stack(terms).sum() if terms else self.weight.new_zeros(())

    def layer_loss(self, layer: WeightLayer) -> Tensor:
        """Return the loss of one layer, a scalar; written by subclasses."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f'reduction={self.reduction}, max_bits={self.max_bits}, layers={self.layers}'


@MODELS.register_module()
class BinRegularizer(Regularizer):
    """Oscillation-aware bin regularisation (arXiv 2307.00331): see :func:`vvq_mm.functional.bins.bin_loss`."""

    loss_name = 'loss_bin'

    def layer_loss(self, layer: WeightLayer) -> Tensor:
        quantizer = layer.quantizer
        rule = getattr(quantizer, 'grad_scale', 'none')  # as for the network's own gradient of the scale
        factor = gradient_scale(rule, layer.module.weight, quantizer.qmax, quantizer.groups, quantizer.axis)
        codes = None if quantizer.frozen is None else layer.codes()  # else those of the latent weight itself
        return bin_loss(layer.latent(), codes, quantizer.current_scale(), quantizer.grid, quantizer.axis,
                        self.reduction, factor)


@MODELS.register_module()
class DampeningRegularizer(Regularizer):
    """Oscillation dampening (arXiv 2203.11086): see :func:`vvq_mm.functional.bins.dampening_loss`."""

    loss_name = 'loss_dampen'

    def layer_loss(self, layer: WeightLayer) -> Tensor:
        quantizer = layer.quantizer
        return dampening_loss(layer.latent(), layer.codes(), quantizer.current_scale(), quantizer.grid, quantizer.axis,
                              self.reduction)
