"""The method as its official code computes it: elementary operators, a loop over bins, float statistics.

Written anew from the published formulas (arXiv 2307.00331; oscillations: arXiv 2203.11086), with what makes that code
slow kept on purpose: gradients by autograd through every operator, tensors where a number would do, and the points at
which it waits for the device. Only the benchmark uses these; train with :class:`vvq_mm.quantizers.LSQQuantizer`.
"""
import math
from typing import Dict, List, Tuple

import torch
from torch import Tensor

from vvq_mm.functional.groups import expand_groups, split_groups
from vvq_mm.losses import Regularizer
from vvq_mm.quantizers import Quantizer
from vvq_mm.weight_layers import WeightLayer


def round_pass(x: Tensor) -> Tensor:
    """Return ``x`` rounded, with the gradient of ``x``."""
    rounded = x.round()
    return rounded.detach() - x.detach() + x


def scale_gradient(x: Tensor, factor) -> Tensor:
    """Return ``x`` (but for its last bit), with ``factor`` times its gradient."""
    scaled = x * factor
    return x.detach() - scaled.detach() + scaled


class TextbookQuantizer(Quantizer):
    """Learned step size out of elementary operators: 9 kernels over the tensor forward, 19 to 22 backward.

    Three points per call wait for the device: the flag of the initialisation, the number of bits, and the norm of the
    weight (for activations the flag again). Half the gradient passes where a value is exactly on the first or last
    code, because ``torch.minimum`` and ``torch.maximum`` share it out. Where one weight has several scales (a fused
    qkv), they are broadcast; the official code has a layer, and all these kernels, for each of them. Arguments as
    :class:`vvq_mm.quantizers.Quantizer`.
    """

    def __init__(self, bits: int, **kwargs) -> None:
        super().__init__(bits, **kwargs)
        self.register_buffer('bit_width', torch.tensor([float(bits)]), persistent=False)

    def limits(self) -> Tuple[Tensor, Tensor]:
        """Return the smallest and the largest code as tensors; waits for the device."""
        self.bit_width.data.clamp_(2, 8)
        bits = round_pass(self.bit_width)
        assert int(bits) == self.bits  # there, the index into a table of scales
        return (-2**(bits - 1), 2**(bits - 1) - 1) if self.signed else (bits * 0, 2**bits - 1)

    def positions(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Return the clipped position of ``x`` on the grid, and the scale that it was divided by."""
        assert self.initialized == 1
        qmin, qmax = self.limits()
        self.scale.data.clamp_(min=1e-4)
        if self.kind == 'weight':
            magnitude = split_groups(x.detach().abs(), self.groups, self.axis).sum(1)
            factor = 1 / math.sqrt(magnitude * qmax) if self.groups == 1 else (magnitude * qmax).rsqrt()
        else:
            assert self.initialized == 1
            factor = 1 / (math.sqrt(x.numel() / self.groups) * qmax)
        scale = expand_groups(scale_gradient(self.scale, factor), x.shape, self.axis)
        return torch.maximum(torch.minimum(x / scale, qmax), qmin), scale

    def fake_quantize(self, x: Tensor) -> Tensor:
        if self.kind == 'weight':
            clipped, scale = self.positions(x)
            return round_pass(clipped) * scale
        offset = 0 if self.offset is None else expand_groups(self.offset, x.shape, self.axis)
        clipped, scale = self.positions(x - offset)
        return round_pass(clipped) * scale + offset


class TextbookBinRegularizer(Regularizer):
    """Bin regularisation as a Python loop over bins with boolean indices, each waiting for the device.

    The official code compares floats (``w_hat / scale == bin``), which loses bins; here the ratio is rounded first, so
    loss and gradients are those of :class:`vvq_mm.losses.BinRegularizer`. Arguments as there. The official code has
    ``max_bits=8`` and ``reduction='mean'``.
    """

    loss_name = 'loss_bin'

    def layer_loss(self, layer: WeightLayer) -> Tensor:
        quantizer, weight = layer.quantizer, layer.module.weight
        quantised = quantizer(weight).detach()
        if isinstance(quantizer, TextbookQuantizer):
            clipped, scale = quantizer.positions(weight)  # all of it a second time, as there
        else:
            scale = expand_groups(quantizer.current_scale(), weight.shape, quantizer.axis)
            clipped = (weight / scale).clamp(quantizer.qmin, quantizer.qmax)
        latent = clipped * scale
        squares = (quantised - latent)**2
        loss = squares.sum() if self.reduction == 'sum' else squares.mean()
        codes = split_groups((quantised / scale.detach()).round(), quantizer.groups, quantizer.axis)
        for group, values in zip(codes, split_groups(latent, quantizer.groups, quantizer.axis)):
            for code in range(quantizer.qmin, quantizer.qmax + 1):
                members = group.eq(code)
                if members.sum() > 1:
                    loss = loss + torch.var(values[members])
        return loss


class TextbookTracker:
    """Oscillation statistics in float32: 25 bytes per weight, and the autograd graph of the codes held for a step.

    Interface of :class:`vvq_mm.oscillation.OscillationTracker` as far as a training step needs it.

    Args:
        layers (list of WeightLayer): from :func:`vvq_mm.weight_layers.select_weights`.
        momentum (float): weight of one step in the running means. Defaults to 0.01.
        freeze_above (float): frequency above which a weight counts as frozen; never acts on the model, as there.
            Defaults to 0.1.
    """

    def __init__(self, layers: List[WeightLayer], momentum: float = 0.01, freeze_above: float = 0.1) -> None:
        self.layers, self.momentum, self.limit = layers, momentum, freeze_above
        self.states: Dict[str, Dict[str, Tensor]] = {}

    def start(self) -> None:
        """Take the present codes as the starting point."""
        for layer in self.layers:
            codes = self._codes(layer)
            zeros = torch.zeros_like(codes).detach()
            self.states[layer.name] = dict(
                codes=codes, direction=zeros.clone(), frequency=zeros.clone(), turned=zeros.clone(),
                mean_codes=codes.detach().clone(), frozen=zeros.bool(), frozen_codes=zeros.clone())

    def update(self) -> None:
        """Take in the codes after an optimizer step."""
        for layer in self.layers:
            state, codes = self.states[layer.name], self._codes(layer)
            codes = ~state['frozen'] * codes + state['frozen'] * state['frozen_codes']
            with torch.no_grad():
                self._update(state, codes)

    def _update(self, state: Dict[str, Tensor], codes: Tensor) -> None:
        change = torch.round(codes - state['codes'])
        moved = change != 0
        direction = torch.sign(change)
        turned = (state['direction'] * direction) == -1
        state['frequency'] = self.momentum * turned + (1 - self.momentum) * state['frequency']
        state['direction'][moved] = direction[moved]
        state['codes'] = codes  # with its graph, as there
        state['turned'] += turned
        freeze = state['frequency'] > self.limit
        state['frozen'][freeze] = True
        state['frozen_codes'][freeze] = torch.round(state['mean_codes'])[freeze]
        state['mean_codes'] = self.momentum * codes + (1 - self.momentum) * state['mean_codes']

    @staticmethod
    def _codes(layer: WeightLayer) -> Tensor:
        if isinstance(layer.quantizer, TextbookQuantizer):
            return round_pass(layer.quantizer.positions(layer.module.weight)[0])
        return layer.codes().float()
