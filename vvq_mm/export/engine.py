"""The integer engine: a quantised model for inference, whose products run on frozen integer codes.

Weighted layers become products of frozen codes (:mod:`vvq_mm.export.engine_layers`), attention products run as with
``matmul='int8'`` in training, and the compiler fuses quantisation with what comes before it (normalisation, GELU,
softmax) and the scales with what comes after. The codes are those of the fake-quantised model.
"""
import copy
import inspect
import re
from typing import Dict, Iterable, List

import torch
from torch import nn

from vvq_mm.layers import SLOT_SUFFIX, AttentionMixin
from vvq_mm.layers.product import device_obstacle, operand_obstacle
from vvq_mm.layers.weighted import WeightedMixin

from .checks import check_exportable
from .engine_layers import freeze_codes_, freeze_values_, layer_obstacle

INTEGER = 'integer'
# slots of the two products of an attention, and the axis of (B, H, N, D) that is summed, of each
ATTENTION_PRODUCTS = ((('query', -1), ('key', -1)), (('prob', -1), ('value', -2)))


def integer_engine(model: nn.Module, compiled: bool = True) -> nn.Module:
    """Return a copy of a quantised model for inference on integer codes, called as the model is.

    What cannot run on integers computes with fake-quantised values, see :func:`engine_report`. Each shape of images is
    compiled at its first call, which takes a minute for a small model.

    Args:
        model (nn.Module): a quantised model with calibrated scales; it stays as it is.
        compiled (bool): whether ``torch.compile`` fuses the engine; without, it is slow. Defaults to True.

    Raises:
        QuantizationError: the model is not quantised, or a scale is not calibrated or not finite.

    Example:
        >>> engine = integer_engine(model)
        >>> logits = engine(images)
    """
    check_exportable(model)
    engine = copy.deepcopy(model).requires_grad_(False)
    engine.eval()
    report = {}
    for name, module in list(engine.named_modules()):
        if isinstance(module, WeightedMixin):
            report[name] = _device_obstacle(module) or layer_obstacle(module)
            freeze_values_(module) if report[name] else freeze_codes_(module)
        elif isinstance(module, AttentionMixin):
            module.matmul, module.strict = 'int8', False
            for operands in ATTENTION_PRODUCTS:
                report[f'{name} ({operands[0][0]}, {operands[1][0]})'] = _product_obstacle(module, operands)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            report[name] = 'it is not quantised'
    engine.integer_products = {name: reason or INTEGER for name, reason in report.items()}
    if compiled:
        engine.compile(**_compiler_settings())
    return engine


def engine_report(engine: nn.Module) -> Dict[str, str]:
    """Return for each layer and attention product of an engine ``integer``, or why it runs on floats.

    Example:
        >>> engine_report(engine)['head']
        'integer'
    """
    return dict(engine.integer_products)


def _device_obstacle(module: nn.Module) -> str:
    return device_obstacle(next(module.parameters()).device.type)


def _product_obstacle(attention: AttentionMixin, operands: tuple) -> str:
    """Return why a product of two slots cannot run on integers, or an empty string."""
    reasons = [_device_obstacle(attention)]
    for slot, summed in operands:
        quantizer = getattr(attention, slot + SLOT_SUFFIX)
        groups = 1 if quantizer is None else quantizer.groups
        reasons.append(operand_obstacle(slot, quantizer, torch.empty((groups, ) * 4, device='meta'), summed))
    return next(filter(None, reasons), '')


def _compiler_settings() -> dict:
    """Return what makes a frozen model fast beyond the compiler's defaults.

    * No pattern matching: it would rewrite softmax(x * scale) so that it tells apart infinite logits, which is slower.
    * An engine does not change, so only what a call passes in is checked before the compiled code runs. Checking every
      module too takes 1 to 2 ms a call, a tenth of a small model's time at batch 1. Nothing would then keep apart two
      engines of one class, so each needs compiled code of its own, which older versions of PyTorch cannot give it.
    """
    if 'isolate_recompiles' not in inspect.signature(torch.compile).parameters:
        return dict(dynamic=False, options=dict(pattern_matcher=False))
    return dict(dynamic=False, isolate_recompiles=True,
                options=dict(pattern_matcher=False, guard_filter_fn=_of_arguments))


def _of_arguments(guards: Iterable) -> List[bool]:
    """Return which of the compiler's checks to keep: those on arguments and settings of torch, not those on modules."""
    return [not guard.is_global and re.search(r'\bself\b', guard.name) is None for guard in guards]
