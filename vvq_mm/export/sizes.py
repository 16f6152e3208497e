"""How large a model must be: its codes at their width, and what stays in float."""
from collections import Counter
from typing import Dict

from torch import nn

from vvq_mm.surgery import iter_quantizers

FLOAT_BYTES = 4


def size_report(model: nn.Module) -> dict:
    """Return the bytes that a quantised model needs, and its float original.

    Args:
        model (nn.Module): a quantised model.

    Returns:
        dict: ``theory`` (every quantised weight at its width, scales, offsets and the float rest as stored), of these
        ``codes``, ``scales`` and ``rest``; ``float32`` (the float model's parameters); ``widths`` (bits -> number of
        weights).

    Example:
        >>> size_report(model)['theory']
        3267440
    """
    quantizers = list(iter_quantizers(model))
    codes, widths, known = 0, Counter(), set()
    for _, module, slot, quantizer in quantizers:
        known.update(id(parameter) for parameter in quantizer.parameters())
        if slot == 'weight':
            known.add(id(module.weight))
            codes += -(-module.weight.numel() * quantizer.bits // 8)
            widths[quantizer.bits] += module.weight.numel()
    scales = FLOAT_BYTES * sum(scale.numel() for *_, quantizer in quantizers for scale in quantizer.parameters())
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    rest_bytes = sum(parameter.numel() * parameter.element_size() for parameter in rest)
    float32 = FLOAT_BYTES * (sum(widths.values()) + sum(parameter.numel() for parameter in rest))
    return dict(theory=codes + scales + rest_bytes, codes=codes, scales=scales, rest=rest_bytes, float32=float32,
                widths={str(bits): count for bits, count in sorted(widths.items())})


def float_rest(model: nn.Module) -> Dict[str, str]:
    """Return what stays in float and why, module or ``MODULE.SLOT`` -> reason.

    Where all whose names differ in numbers alone stay for one reason, they are written once, with ``*`` for the number.
    """
    slots = [f'{name}.{slot}' for name, slots in model.plan.slots.items() for slot in slots]
    every = Counter(_pattern(name) for name in [*slots, *(name for name, _ in model.named_modules())])
    alike = Counter((_pattern(name), reason) for name, reason in model.plan.reasons.items())
    return {_pattern(name) if alike[_pattern(name), reason] == every[_pattern(name)] else name: reason
            for name, reason in model.plan.reasons.items()}


def _pattern(name: str) -> str:
    return '.'.join('*' if part.isdigit() else part for part in name.split('.'))
