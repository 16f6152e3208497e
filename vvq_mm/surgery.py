"""Putting a plan into a model and looking at what is there; everything in place."""
from contextlib import contextmanager
from typing import Iterator, List, Optional, Tuple, Union

import torch
from torch import nn

from vvq_mm.errors import QuantizationError
from vvq_mm.layers import SLOT_SUFFIX, SlotMixin, attention_mixin, swap_, unswap_, weighted_mixin
from vvq_mm.policy import QuantPlan
from vvq_mm.quantizers import MODES, Quantizer
from vvq_mm.registry import POLICIES, QUANTIZERS


def quantize_(model: nn.Module, policy: Union[dict, object]) -> QuantPlan:
    """Quantise ``model`` in place by a policy and return the plan; calibrate next.

    Args:
        model (nn.Module): any model of linear layers, convolutions and attentions.
        policy (dict | policy): config of a policy, or an object with ``plan(model)``.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 2))
        >>> plan = quantize_(model, dict(type='RulePolicy', weight=dict(type='LSQQuantizer', bits=4), act=None))
        >>> type(model[0]).__name__
        'QuantLinear'
    """
    policy = POLICIES.build(policy) if isinstance(policy, dict) else policy
    plan = policy.plan(model)
    apply_plan(model, plan)
    return plan


def apply_plan(model: nn.Module, plan: QuantPlan) -> None:
    """Swap the class of every module in the plan that has a quantised slot, and give it its quantizers."""
    built = {name: {slot: _build(config, f'{name} ({slot})') for slot, config in slots.items() if config is not None}
             for name, slots in plan.slots.items()}  # all before the first swap: an error leaves the model as it was
    for name, quantizers in built.items():
        if quantizers:
            module = model.get_submodule(name)
            device = next(module.parameters()).device
            swap_(module, weighted_mixin(module) or attention_mixin(module), quantizers)
            module.matmul, module.strict, module.where = plan.matmul, plan.strict, name
            for quantizer in quantizers.values():
                quantizer.to(device)


def _build(config: dict, where: str) -> Quantizer:
    try:
        return QUANTIZERS.build(dict(config, where=where))
    except TypeError as error:
        raise QuantizationError(f'expected options that {config.get("type")} knows for {where}, got {config}: '
                                f'{error}') from error


def unquantize_(model: nn.Module) -> None:
    """Undo :func:`quantize_`: the float classes again, the latent weights as they are."""
    for module in [module for module in model.modules() if isinstance(module, SlotMixin)]:
        unswap_(module)


def iter_quantizers(model: nn.Module) -> Iterator[Tuple[str, nn.Module, str, Quantizer]]:
    """Yield (module name, module, slot, quantizer) for every quantised slot, in the order of the model."""
    for name, module in model.named_modules():
        if isinstance(module, SlotMixin):
            for slot in module.SLOTS:
                quantizer = getattr(module, slot + SLOT_SUFFIX)
                if quantizer is not None:
                    yield name, module, slot, quantizer


@contextmanager
def quantizer_mode(model: nn.Module, mode: str) -> Iterator[None]:
    """Set the mode of all quantizers (``quantize``, ``float`` or ``observe``) and restore it at the end.

    Example:
        >>> with quantizer_mode(model, 'float'):  # the full-precision function on the latent weights
        ...     logits = model(images)
    """
    if mode not in MODES:
        raise QuantizationError(f'expected mode to be one of {", ".join(MODES)}, got {mode!r} in quantizer_mode')
    quantizers = [quantizer for *_, quantizer in iter_quantizers(model)]
    before = [quantizer.mode for quantizer in quantizers]
    try:
        for quantizer in quantizers:
            quantizer.mode = mode
        yield
    finally:
        for quantizer, old in zip(quantizers, before):
            quantizer.mode = old


@torch.no_grad()
def verify(model: nn.Module, example: Optional[torch.Tensor] = None, forward=None) -> None:
    """Run one forward and raise unless every quantised slot was used exactly once.

    Args:
        model (nn.Module): a quantised model.
        example (Tensor): an input.
        forward (callable, optional): runs the model on ``example``. Defaults to ``model(example)``.

    Raises:
        QuantizationError: names the slots that were never used (their layer is bypassed) or used more than once.
    """
    calls = {}
    handles = []
    for name, _, slot, quantizer in iter_quantizers(model):
        calls[f'{name}.{slot}'] = 0
        handles.append(quantizer.register_forward_hook(
            lambda *_, key=f'{name}.{slot}': calls.__setitem__(key, calls[key] + 1)))
    try:
        with quantizer_mode(model, 'float'):
            (forward or model)(example)
    finally:
        for handle in handles:
            handle.remove()
    wrong: List[str] = [f'{key} ({count} times)' for key, count in calls.items() if count != 1]
    if wrong:
        raise QuantizationError(f'expected every quantised slot to be used once per forward, got {", ".join(wrong[:5])}'
                                f'{" and others" if len(wrong) > 5 else ""}; leave them in float with a rule, or '
                                'register a quantised class')
