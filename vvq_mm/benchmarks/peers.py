"""Other people's fake quantisation as quantizers of this package, so that it runs at exactly the same sites.

Each computes with the library's own operators or modules. Scales start where calibration puts ours, except where the
library takes them from each tensor anew. ``codes`` are those of the calibrated scale in every case.
"""
import importlib
from typing import Callable, Dict

import torch
from torch import Tensor, nn

from vvq_mm.functional.gradient_scale import gradient_scale
from vvq_mm.functional.groups import expand_groups, split_groups
from vvq_mm.policy.rules import COMMON_OPTIONS
from vvq_mm.quantizers import Quantizer

from .textbook import TextbookQuantizer, scale_gradient


class StraightThroughQuantizer(Quantizer):
    """The usual formula of a learned step size in plain autograd, rounding as ``v + (round(v) - v).detach()``.

    Values and gradients are those of :class:`vvq_mm.quantizers.LSQQuantizer`.
    """

    def fake_quantize(self, x: Tensor) -> Tensor:
        factor = gradient_scale('lsq', x, self.qmax, self.groups, self.axis, batched=self.kind == 'act')
        scale = expand_groups(scale_gradient(self.scale, factor), x.shape, self.axis)
        offset = None if self.offset is None else expand_groups(self.offset, x.shape, self.axis)
        position = ((x if offset is None else x - offset) / scale).clamp(self.qmin, self.qmax)
        value = (position + (position.round() - position).detach()) * scale
        return (value if offset is None else value + offset).to(x.dtype)


class TorchLearnableQuantizer(Quantizer):
    """PyTorch's ``_fake_quantize_learnable_per_tensor_affine``, per channel where there are several groups.

    Their zero point is an integer, so an offset acts rounded to a multiple of the scale; and the gradient passes up to
    half a step outside the grid.
    """

    def fake_quantize(self, x: Tensor) -> Tensor:
        zero_point = torch.zeros_like(self.scale) if self.offset is None else -self.offset / self.scale
        factor = gradient_scale('lsq', x, self.qmax, self.groups, self.axis, batched=self.kind == 'act')
        limits, wide = (self.qmin, self.qmax, factor), x.float()  # the backward refuses half precision
        if self.groups == 1:
            value = torch._fake_quantize_learnable_per_tensor_affine(wide, self.scale, zero_point, *limits)
        else:
            value = _in_groups(wide, self.groups, self.axis, lambda rows: (
                torch._fake_quantize_learnable_per_channel_affine(rows, self.scale, zero_point, 0, *limits)))
        return value.to(x.dtype)


class TorchaoQuantizer(Quantizer):
    """torchao's QAT fake quantizer: weights per output channel, activations per token, scales not learned.

    Scales come from the extremes of each tensor in every forward; activations are asymmetric. torchao has this for
    linear layers; a convolution's weight goes through it flattened to (out, rest), other sites token by token.

    Raises:
        ImportError: torchao is not installed.
    """

    def __init__(self, bits: int, **kwargs) -> None:
        super().__init__(bits, **kwargs)
        qat = _library('torchao.quantization.qat', 'torchao')
        weight = self.kind == 'weight'
        config = qat.IntxFakeQuantizeConfig(getattr(torch, f'int{bits}'), 'per_channel' if weight else 'per_token',
                                            is_symmetric=weight)
        self.fake = qat.FakeQuantizerBase.from_config(config)
        for parameter in self.parameters(recurse=False):
            parameter.requires_grad_(False)

    def fake_quantize(self, x: Tensor) -> Tensor:
        return self.fake(x.flatten(1)).view_as(x) if self.kind == 'weight' else self.fake(x)


class BrevitasQuantizer(Quantizer):
    """Brevitas' integer quantizer with learned scale (and learned, rounded zero point where there is an offset).

    The modules that ``brevitas.quant`` assembles for ``ScalingImplType.PARAMETER``, on the full integer range; weights
    clip with a straight-through gradient, activations with the gradient of the clip, as the library's defaults do.

    Raises:
        ImportError: Brevitas is not installed.
    """

    def __init__(self, bits: int, **kwargs) -> None:
        super().__init__(bits, **kwargs)
        core = {name: _library(f'brevitas.core.{name}', 'brevitas')
                for name in ('quant', 'scaling', 'zero_point', 'bit_width', 'function_wrapper')}
        wrapper = core['function_wrapper']
        clamp = wrapper.TensorClampSte if self.kind == 'weight' else wrapper.TensorClamp
        integers = core['quant'].IntQuant(narrow_range=False, signed=self.signed, input_view_impl=nn.Identity(),
                                          float_to_int_impl=wrapper.RoundSte(), tensor_clamp_impl=clamp())
        shape = (self.groups, 1) if self.groups > 1 else (1, )
        zero_point = core['zero_point'].ZeroZeroPoint() if self.offset is None else core[
            'zero_point'].ParameterZeroPoint(torch.zeros(shape), integers, quantize_zero_point=True)
        self.fake = core['quant'].RescalingIntQuant(
            int_quant=integers, scaling_impl=core['scaling'].ParameterScaling(torch.ones(shape)),
            int_scaling_impl=core['scaling'].IntScaling(signed=self.signed, narrow_range=False),
            zero_point_impl=zero_point, bit_width_impl=core['bit_width'].BitWidthConst(bits))
        for parameter in self.parameters(recurse=False):
            parameter.requires_grad_(False)  # trained are those of `fake`

    @torch.no_grad()
    def initialise(self, statistics) -> None:
        super().initialise(statistics)
        threshold = -self.qmin if self.signed else self.qmax  # Brevitas learns the end of the range
        learned = self.fake.scaling_impl.value
        learned.copy_((self.scale * threshold).view_as(learned))
        if self.offset is not None:
            learned = self.fake.zero_point_impl.value
            learned.copy_(self.offset.abs().view_as(learned))

    def fake_quantize(self, x: Tensor) -> Tensor:
        if self.groups == 1:
            return self.fake(x)[0]
        return _in_groups(x, self.groups, self.axis, lambda rows: self.fake(rows)[0])


PEERS = {
    'textbook': TextbookQuantizer,
    'straight-through': StraightThroughQuantizer,
    'torch': TorchLearnableQuantizer,
    'torchao': TorchaoQuantizer,
    'brevitas': BrevitasQuantizer,
}


def peer_policy(policy: Dict, quantizer: type) -> Dict:
    """Return a ``RulePolicy`` config with ``quantizer`` in place of each type, and the options that all types know.

    The products stay in float: what ours can do on integer codes, theirs cannot.

    Example:
        >>> policy = dict(type='RulePolicy', weight=dict(type='LSQQuantizer', bits=4, grad_scale='l1'), act=None)
        >>> peer_policy(policy, StraightThroughQuantizer)['weight']['bits']
        4
    """
    def changed(template):
        if not isinstance(template, dict):
            return template
        kept = {key: value for key, value in template.items() if key in COMMON_OPTIONS}
        return {**kept, 'type': quantizer} if 'type' in template else kept

    rules = {pattern: {slot: changed(value) for slot, value in rule.items()} if isinstance(rule, dict) else rule
             for pattern, rule in (policy.get('rules') or {}).items()}
    return dict(type=policy['type'], weight=changed(policy['weight']), act=changed(policy['act']), rules=rules)


def _library(module: str, package: str):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'expected {package} for its row in the benchmark, it cannot be imported ({error}); '
                          'pip install vvq_mm[bench], or leave the row out') from error


def _in_groups(x: Tensor, groups: int, axis: int, quantize: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``quantize`` of ``x`` as (groups, elements of a group), back in the shape of ``x``."""
    moved = x.movedim(axis, 0).shape
    return quantize(split_groups(x, groups, axis)).reshape(moved).movedim(0, axis)
