"""Swapping the class of a module, never the object: parameters, hooks and checkpoint keys stay what they were.

PyTorch's FSDP2 changes ``module.__class__`` in the same way. MMEngine's ``init_cfg`` still finds a ``QuantLinear`` as a
``Linear``, since it looks at the names of the direct bases.
"""
from functools import lru_cache
from typing import Dict, Type

from torch import nn

from vvq_mm.errors import QuantizationError

SLOT_SUFFIX = '_quantizer'  # part of checkpoint keys and of `paramwise_cfg`: public API


@lru_cache(maxsize=None)
def quant_class(mixin: type, base: type) -> type:
    """Return the class ``Quant<base>`` with the forward of ``mixin``, the same object for the same pair."""
    return type(f'Quant{base.__name__}', (mixin, base), {'__module__': base.__module__, '__doc__': mixin.__doc__})


def _blank(mixin: type, base: type) -> nn.Module:
    """Return an instance of ``quant_class(mixin, base)`` without a state: where unpickling starts."""
    made = quant_class(mixin, base)
    return made.__new__(made)


def swap_(module: nn.Module, mixin: Type['SlotMixin'], quantizers: Dict[str, nn.Module]) -> None:
    """Turn ``module`` into its quantised class in place and give it its quantizers, one per slot."""
    if isinstance(module, SlotMixin):
        raise QuantizationError(f'expected a float module, got {type(module).__name__}, which is quantised already; '
                                'build the model again')
    module.__class__ = quant_class(mixin, type(module))
    for slot in mixin.SLOTS:
        setattr(module, slot + SLOT_SUFFIX, quantizers.get(slot))


def unswap_(module: nn.Module) -> None:
    """Undo :func:`swap_`: the float class again, without quantizers."""
    for slot in module.SLOTS:
        delattr(module, slot + SLOT_SUFFIX)
    for setting in ('matmul', 'strict', 'where'):
        vars(module).pop(setting, None)
    module.__class__ = type(module).__bases__[1]


class SlotMixin:
    """What every quantised class has: named slots, each a quantizer or None (float)."""

    SLOTS: tuple = ()

    def slot(self, name: str, x):
        """Return ``x`` through the quantizer of slot ``name``; unchanged if the slot is in float."""
        quantizer = getattr(self, name + SLOT_SUFFIX)
        return x if quantizer is None else quantizer(x)

    def __reduce_ex__(self, protocol: int) -> tuple:
        """Pickle by the two classes it was made of: the class itself cannot be found by its name."""
        return _blank, type(self).__bases__, super().__reduce_ex__(protocol)[2]
