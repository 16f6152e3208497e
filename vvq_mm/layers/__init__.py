"""Layers with slots: the forwards in which operands are quantised."""
from .attention import AttentionMixin, attention_class, attention_mixin
from .product import MATMULS, ProductMixin
from .swap import SLOT_SUFFIX, SlotMixin, swap_, unswap_
from .weighted import WeightedMixin, weighted_mixin

__all__ = ['AttentionMixin', 'MATMULS', 'ProductMixin', 'SLOT_SUFFIX', 'SlotMixin', 'WeightedMixin', 'attention_class',
           'attention_mixin', 'swap_', 'unswap_', 'weighted_mixin']
