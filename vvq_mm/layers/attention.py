"""Attention with the slots ``query``, ``key``, ``value`` and ``prob``, around the class's own forward.

Query, key, value and the probabilities are operands of two products inside ``forward``; no child module makes them. The
forward of the original class runs under a :class:`AttentionTap`, which quantises the operands of these products as they
pass. So every upstream fix of an attention class arrives here, and a new class needs no code.

Shapes: B batch (times windows), H heads, N queries, M keys, D channels of a head.
"""
import math
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vvq_mm.errors import QuantizationError

from .product import ProductMixin
from .weighted import LinearMixin

_MATMULS = {torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm}


class AttentionMixin(ProductMixin):
    """Quantised operands of the two products of an attention."""

    SLOTS = ('query', 'key', 'value', 'prob')

    def forward(self, *args, **kwargs):
        products = []
        with AttentionTap(self, products):
            output = super().forward(*args, **kwargs)
        if len(products) != 2:
            raise QuantizationError(f'expected 2 attention products, saw {len(products)} in {type(self).__name__}; '
                                    'leave its slots in float with a rule `None`, or register a quantised class for it '
                                    'with @attention_class')
        return output


class AttentionTap(TorchFunctionMode):
    """Quantises the operands of one attention's products during one call of its forward.

    * ``F.scaled_dot_product_attention`` becomes softmax(Q(q) Q(k)^T s + mask), then Q(prob) Q(v).
    * Otherwise the first ``matmul`` is q k^T and the second is prob v. Classes that multiply q by ``self.scale`` first
      get q quantised before that factor, so that both ways train the same scale.
    * ``F.linear`` with the weight of a quantised child (SwinV2, BEiT and EVA-02 bypass ``self.qkv``) goes through its
      slots.
    """

    def __init__(self, owner: AttentionMixin, products: list) -> None:
        super().__init__()
        self.owner = owner
        self.products = products  # grows to 2: q k^T, prob v
        self.children = {id(child.weight): child for child in owner.children() if isinstance(child, LinearMixin)}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.products.extend(('query key', 'prob value'))
            return quantized_attention(self.owner, *args, **kwargs)
        if func in _MATMULS:
            self.products.append(func)
            a, b = (*args, *(kwargs[name] for name in sorted(kwargs)))  # `input` sorts before `mat2` and `other`
            if len(self.products) > 1:
                return self.owner.product('prob', a, 'value', b)
            factor = getattr(self.owner, 'scale', None)
            factor = factor if isinstance(factor, float) else None
            return self.owner.product('query', a, 'key', b.transpose(-2, -1), transposed=True, factor=factor)
        if func is F.linear:
            return self._linear(*args, **kwargs)
        return func(*args, **kwargs)

    def _linear(self, input: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
        child = self.children.get(id(weight))
        return F.linear(input, weight, bias) if child is None else child.linear(input, bias)


def quantized_attention(slots: AttentionMixin, query: Tensor, key: Tensor, value: Tensor,
                        attn_mask: Optional[Tensor] = None, dropout_p: float = 0.0, is_causal: bool = False,
                        scale: Optional[float] = None, enable_gqa: bool = False) -> Tensor:
    """Return scaled dot-product attention on quantised operands; arguments as ``F.scaled_dot_product_attention``.

    Args:
        slots (AttentionMixin): holds the quantizers.
        query, key, value (Tensor): (B, H, N, D), (B, H, M, D), (B, H, M, D).
        attn_mask (Tensor, optional): bool (True = may attend) or additive, broadcastable to (B, H, N, M).
    """
    if enable_gqa:
        raise QuantizationError('expected equally many heads for query and key, got enable_gqa=True in '
                                f'{type(slots).__name__}; leave its slots in float with a rule `None`')
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    logits = slots.product('query', query, 'key', key, transposed=True) * scale
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
    prob = F.dropout(logits.softmax(-1), dropout_p, training=dropout_p > 0)
    return slots.product('prob', prob, 'value', value)


_CLASSES = {}


def attention_class(name: str):
    """Register a mixin with a forward of its own, and the slots of :class:`AttentionMixin`, for the class ``name``.

    Example:
        >>> @attention_class('MyAttention')
        ... class MyAttentionMixin(AttentionMixin):
        ...     def forward(self, x): ...
    """

    def register(mixin):
        _CLASSES[name] = mixin
        return mixin

    return register


def attention_mixin(module: nn.Module) -> Optional[type]:
    """Return the mixin for an attention (a module with ``num_heads``, ``qkv`` and ``proj``), None for other modules."""
    if type(module).__name__ in _CLASSES:
        return _CLASSES[type(module).__name__]
    is_attention = all(hasattr(module, name) for name in ('num_heads', 'qkv', 'proj'))
    return AttentionMixin if is_attention else None
