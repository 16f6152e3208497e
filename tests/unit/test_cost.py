"""Bytes and bit operations of a plan, against numbers worked out by hand."""
import pytest
import timm
import torch
from helpers import policy, tiny_mlp, tiny_vit
from torch import nn

import vvq_mm
from vvq_mm.analysis import model_bytes, model_cost
from vvq_mm.analysis.cost import multiply_accumulates

IMAGE = torch.zeros(1, 3, 32, 32)
TOKENS, WIDTH, BLOCKS = 17, 32, 2  # of the tiny ViT: 16 patches of 8 x 8 x 3 pixels and a class token


def quantised(model, **options):
    model.eval()
    vvq_mm.quantize_(model, policy(**options))
    return model


def test_bytes_count_weights_at_their_width_and_the_rest_in_float32():
    model = quantised(tiny_mlp(), bits=2)  # 6 -> 8 -> 4: 80 weights, 12 biases; four scales
    assert model_bytes(model) == dict(quantised=80 * 2 // 8 + 12 * 4 + 4 * 4, float32=92 * 4)


def test_multiply_accumulates_are_those_of_the_products():
    counts = multiply_accumulates(quantised(tiny_vit()), IMAGE)
    assert counts['backbone.patch_embed.projection'] == 16 * (8 * 8 * 3) * WIDTH
    assert counts['backbone.layers.0.attn.qkv'] == TOKENS * WIDTH * 3 * WIDTH
    assert counts['backbone.layers.1.attn'] == 2 * TOKENS * TOKENS * WIDTH  # q k^T and prob v
    assert counts['head.layers.head'] == WIDTH * 4


@pytest.mark.parametrize('rules', [{}, {'*.attn': None}, {'*': None}],
                         ids=['quantised', 'attention in float', 'all in float'])
def test_the_float_cost_does_not_depend_on_the_policy(rules):
    everything = sum(multiply_accumulates(quantised(tiny_vit()), IMAGE).values())
    assert model_cost(quantised(tiny_vit(), rules=rules), IMAGE).float_bit_operations == everything * 32 * 32


def test_an_operand_in_float_counts_32_bits():
    attention = BLOCKS * 2 * TOKENS * TOKENS * WIDTH
    low, high = (model_cost(quantised(tiny_vit(), bits=4, rules=rules), IMAGE).bit_operations
                 for rules in ({}, {'*.attn': dict(query=None, prob=None)}))
    assert high - low == attention * (32 * 4 - 4 * 4)


def test_a_shared_attention_is_counted_as_often_as_it_runs():

    class Twice(nn.Module):

        def __init__(self):
            super().__init__()
            attention = timm.models.vision_transformer.Attention(8, 2)
            self.first, self.second = nn.Sequential(attention), nn.Sequential(attention)

        def forward(self, x):
            return self.second(self.first(x))

    counts = multiply_accumulates(quantised(Twice()), torch.zeros(1, 5, 8))
    assert counts == {'first.0': 2 * 2 * 5 * 5 * 8, 'first.0.qkv': 2 * 5 * 8 * 24, 'first.0.proj': 2 * 5 * 8 * 8}
