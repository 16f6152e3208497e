"""The plan: which slot of which module is quantised how. Pure data, printable, saved as JSON."""
from collections import Counter
from dataclasses import dataclass, field
from typing import Dict, Iterator, Optional, Tuple

SlotConfig = Optional[dict]  # arguments of a quantizer, or None for float


@dataclass
class QuantPlan:
    """What a policy decided for a model.

    Args:
        slots (dict): module name -> slot name -> quantizer config, or None for float.
        reasons (dict): name of a module or ``module.slot`` in float -> why.
        matmul (str): how products of two quantised operands run in forward: ``float`` or ``int8``. Defaults to
            ``float``.
        strict (bool): whether a product that cannot run so is an error. Defaults to False.

    Example:
        >>> slots = {'head': {'weight': dict(type='LSQQuantizer', bits=8), 'input': None}}
        >>> plan = QuantPlan(slots, {'head.input': 'rule'})
        >>> plan.count()
        {'weight': 1, 'act': 0}
    """

    slots: Dict[str, Dict[str, SlotConfig]] = field(default_factory=dict)
    reasons: Dict[str, str] = field(default_factory=dict)
    matmul: str = 'float'
    strict: bool = False

    def items(self) -> Iterator[Tuple[str, str, SlotConfig]]:
        """Yield (module name, slot name, config or None)."""
        for name, slots in self.slots.items():
            for slot, config in slots.items():
                yield name, slot, config

    def count(self) -> Dict[str, int]:
        """Return the number of quantizers for weights and for activations."""
        quantised = [slot for _, slot, config in self.items() if config is not None]
        weights = quantised.count('weight')
        return dict(weight=weights, act=len(quantised) - weights)

    def summary(self) -> str:
        """Return how many weights and activations have how many bits, in a sentence."""
        widths = {True: Counter(), False: Counter()}
        for _, slot, config in self.items():
            widths[slot == 'weight'][f'{config["bits"]} bit' if config else 'float'] += 1
        words = {kind: ', '.join(f'{count} at {width}' if width != 'float' else f'{count} in float'
                                 for width, count in sorted(counter.items())) for kind, counter in widths.items()}
        return f'weights: {words[True]}; activations: {words[False]}'

    def to_dict(self) -> dict:
        return dict(slots=self.slots, reasons=self.reasons, matmul=self.matmul, strict=self.strict)

    @classmethod
    def from_dict(cls, data: dict) -> 'QuantPlan':
        return cls(data['slots'], data.get('reasons', {}), data.get('matmul', 'float'), data.get('strict', False))

    def rows(self) -> Iterator[Tuple[str, str, str]]:
        """Yield (module, slot, description): a table for people and for golden files."""
        for name, slot, config in self.items():
            yield name, slot, describe(config) if config else f'float ({self.reasons.get(f"{name}.{slot}", "")})'


def describe(config: dict) -> str:
    """Return a quantizer config in words.

    Example:
        >>> describe(dict(type='LSQQuantizer', bits=4, signed=False, offset=True, groups=3, axis=0))
        '4 bit unsigned LSQ, offset, 3 groups on axis 0'
    """
    parts = [f'{config["bits"]} bit {"signed" if config.get("signed", True) else "unsigned"} '
             f'{str(config["type"]).removeprefix("vvq_mm.").removesuffix("Quantizer")}']
    if config.get('offset'):
        parts.append('offset')
    if config.get('groups', 1) > 1:
        parts.append(f'{config["groups"]} groups on axis {config["axis"]}')
    if config.get('float_part'):
        parts.append(f'{len(config["float_part"]["members"])} of {config["float_part"]["groups"]} blocks in float')
    return ', '.join(parts)
