"""Granularity: the word in a rule, resolved to a number of groups along an axis of the slot's tensor."""
from typing import Tuple, Union

from torch import nn

from vvq_mm.errors import QuantizationError
from vvq_mm.functional.groups import check_groups
from vvq_mm.layers import attention_mixin

WORDS = ('tensor', 'channel', 'qkv', 'head')


def resolve_granularity(granularity: Union[str, dict], model: nn.Module, name: str, slot: str) -> Tuple[int, int]:
    """Return ``(groups, axis)`` for a slot.

    ============  =====================================================================================================
    ``tensor``    one scale
    ``channel``   one per output channel of a weight, per channel of an activation
    ``qkv``       three blocks of rows of a fused ``qkv`` weight: query, key and value get their own scale
    ``head``      one per head: query, key, value, prob (B, H, N, D): axis 1; ``qkv`` weight: 3 H blocks of rows (heads
                  live on the output axis); ``proj`` weight: H blocks of columns (on the input axis); ``proj`` input:
                  axis -1
    dict          ``dict(groups=.., axis=..)``, taken as it is
    ============  =====================================================================================================

    Raises:
        QuantizationError: an unknown word, or one that means nothing for this slot.
    """
    module = model.get_submodule(name)
    where = f'{name} ({slot})'
    if isinstance(granularity, dict):
        groups, axis = _written(granularity, where)
    elif granularity == 'tensor':
        return 1, 0
    elif granularity == 'channel':
        groups, axis = _channels(module, slot, where)
    elif granularity in ('qkv', 'head'):
        groups, axis = _attention_groups(granularity, model, name, slot, where)
    else:
        raise QuantizationError(f'expected granularity to be one of {", ".join(WORDS)} or dict(groups=, axis=), got '
                                f'{granularity!r} for {where}')
    if slot == 'weight':
        shape = tuple(module.weight.shape)
        if not -len(shape) <= axis < len(shape):
            raise QuantizationError(f'expected granularity with an axis of the weight {shape}, got axis {axis} for '
                                    f'{where}')
        check_groups(shape[axis], groups, where)
    return groups, axis


def _written(granularity: dict, where: str) -> Tuple[int, int]:
    groups, axis = granularity.get('groups'), granularity.get('axis', 0)
    if not (isinstance(groups, int) and groups > 0 and isinstance(axis, int)):
        raise QuantizationError('expected granularity to be dict(groups=, axis=) with whole numbers and groups above '
                                f'0, got {dict(granularity)} for {where}')
    return groups, axis


def _channels(module: nn.Module, slot: str, where: str) -> Tuple[int, int]:
    if slot == 'weight':
        return module.weight.shape[0], 0
    if slot == 'input':
        return (module.in_channels, 1) if isinstance(module, nn.Conv2d) else (module.in_features, -1)
    raise QuantizationError("expected granularity 'tensor' or 'head' for an attention operand, got 'channel' for "
                            f'{where}')


def _attention_groups(word: str, model: nn.Module, name: str, slot: str, where: str) -> Tuple[int, int]:
    module = model.get_submodule(name)
    if attention_mixin(module) is not None and word == 'head':
        return module.num_heads, 1
    parent_name, _, child = name.rpartition('.')
    parent = model.get_submodule(parent_name)
    if attention_mixin(parent) is not None:
        heads = parent.num_heads
        table = {('qkv', 'qkv', 'weight'): (3, 0), ('head', 'qkv', 'weight'): (3 * heads, 0),
                 ('head', 'proj', 'weight'): (heads, 1), ('head', 'proj', 'input'): (heads, -1)}
        if (word, child, slot) in table:
            return table[word, child, slot]
    raise QuantizationError(f'expected a slot of an attention for granularity {word!r}, got {where}; `head` fits '
                            'query, key, value, prob, `qkv` (weight) and `proj`, and `qkv` fits the fused qkv weight; '
                            "use 'tensor' or 'channel' here")
