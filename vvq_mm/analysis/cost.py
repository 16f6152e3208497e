"""What a plan costs: bytes of the weights, and bit operations of the products."""
from collections import defaultdict
from typing import Dict, List, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vvq_mm.layers import AttentionMixin, attention_mixin
from vvq_mm.surgery import iter_quantizers, quantizer_mode

FLOAT_BITS = 32


class Cost(NamedTuple):
    """Cost of a quantised model beside its float original.

    Args:
        bytes (int): all parameters, quantised weights at their width, the rest in float32; scales included.
        float_bytes (int): the float model in float32.
        bit_operations (int): per image, multiply-accumulates times the widths of both operands.
        float_bit_operations (int): the same at 32 x 32 bits.
    """

    bytes: int
    float_bytes: int
    bit_operations: int
    float_bit_operations: int


def model_bytes(model: nn.Module) -> Dict[str, int]:
    """Return the size of the parameters as ``quantised`` and ``float32`` bytes.

    Example:
        >>> model_bytes(nn.Linear(10, 10))
        {'quantised': 440, 'float32': 440}
    """
    width = {id(module.weight): quantizer.bits for _, module, slot, quantizer in iter_quantizers(model)
             if slot == 'weight'}
    own = {id(parameter) for *_, quantizer in iter_quantizers(model) for parameter in quantizer.parameters()}
    bits = sum(parameter.numel() * width.get(id(parameter), FLOAT_BITS) for parameter in model.parameters())
    count = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in own)
    return dict(quantised=-(-bits // 8), float32=count * FLOAT_BITS // 8)


@torch.no_grad()
def multiply_accumulates(model: nn.Module, image: Tensor) -> Dict[str, int]:
    """Return the multiply-accumulates of one forward per weighted layer, and per attention those of its two products.

    A layer whose weight the attention around it uses directly (BEiT's ``qkv``) counts with the attention.

    Args:
        model (nn.Module): a quantised model; it runs in float.
        image (Tensor): (1, 3, H, W).
    """
    counter = FlopCounterMode(display=False, depth=None)
    # the plain products of attention, since not every fused kernel is counted
    with quantizer_mode(model, 'float'), sdpa_kernel(SDPBackend.MATH), counter:
        model(image)
    root = type(model).__name__
    flops = {name.removeprefix(f'{root}.'): sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    names: Dict[nn.Module, List[str]] = defaultdict(list)  # a shared module has several, and counts under any of them
    for name, module in model.named_modules(remove_duplicate=False):
        names[module].append(name)
    count = {module: sum(flops.get(name, 0) for name in known) for module, known in names.items()}
    own = {}
    for module, (name, *_) in names.items():
        if is_attention(module):
            own[name] = (count[module] - sum(count[child] for child in module.children())) // 2
        elif count[module] and isinstance(module, (nn.Linear, nn.Conv2d)):
            own[name] = count[module] // 2
    return own


def is_attention(module: nn.Module) -> bool:
    """Whether the module is an attention, quantised or in float."""
    return isinstance(module, AttentionMixin) or attention_mixin(module) is not None


def model_cost(model: nn.Module, image: Tensor) -> Cost:
    """Return the :class:`Cost` of a quantised model for one image.

    A product of a b-bit and a c-bit operand counts b c bit operations per multiply-accumulate; an operand in float
    counts 32.
    """
    bits = {(name, slot): quantizer.bits for name, _, slot, quantizer in iter_quantizers(model)}
    operations = total = 0
    for name, count in multiply_accumulates(model, image).items():
        total += count * FLOAT_BITS**2
        attention = is_attention(model.get_submodule(name))
        pairs = [('query', 'key'), ('prob', 'value')] if attention else [('weight', 'input')]
        for pair in pairs:
            first, second = (bits.get((name, slot), FLOAT_BITS) for slot in pair)
            operations += count // len(pairs) * first * second
    size = model_bytes(model)
    return Cost(size['quantised'], size['float32'], operations, total)
