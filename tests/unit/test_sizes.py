"""How large a model must be, counted by hand, and what stays in float and why."""
import pytest
from exported_models import mlp, sequential, trained
from helpers import VIT_RULES
from torch import nn

from vvq_mm.export.packed import read_packed, save_packed
from vvq_mm.export.sizes import float_rest, size_report


@pytest.mark.parametrize('bits', [2, 3, 4, 8])
def test_theory_is_codes_scales_and_the_float_rest(bits):
    report = size_report(mlp(bits=bits))
    weights, biases = [24 * 16, 8 * 24], 24 + 8
    assert report['codes'] == sum(count * bits // 8 for count in weights)
    assert report['scales'] == 4 * 4 and report['rest'] == 4 * biases
    assert report['theory'] == report['codes'] + report['scales'] + report['rest']
    assert report['float32'] == 4 * (sum(weights) + biases)
    assert report['widths'] == {str(bits): sum(weights)}


def test_codes_that_fill_no_whole_byte_take_one_more():
    model = sequential(nn.Linear(5, 3, bias=False), shape=(5, ), bits=3)
    assert size_report(model)['codes'] == 6  # 45 bits


def test_offsets_and_groups_count_as_scales():
    model = mlp(rules={'0': dict(weight=dict(granularity='channel'), input=dict(offset=True))})
    assert size_report(model)['scales'] == 4 * (24 + 2 + 1 + 1)


def test_widths_are_counted_apart():
    assert size_report(mlp(bits=2, rules={'2': 8}))['widths'] == {'2': 24 * 16, '8': 8 * 24}


def test_a_weight_in_float_is_part_of_the_rest():
    model = mlp(rules={'2': dict(weight=None)})
    assert size_report(model)['rest'] == 4 * (24 + 8 + 8 * 24)
    assert size_report(model)['float32'] == size_report(mlp())['float32']


def test_a_shared_parameter_counts_once():
    model = sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.LayerNorm(16))
    before = size_report(model)
    model[2].weight = model[0].weight
    after = size_report(model)
    assert before['rest'] - after['rest'] == before['float32'] - after['float32'] == 4 * 16


def test_theory_is_what_a_packed_file_holds(tmp_path):
    model = trained(rules=VIT_RULES, bits=3)
    save_packed(model, tmp_path / 'file')
    stored = sum(tensor.nbytes for tensor in read_packed(tmp_path / 'file').tensors.values())
    assert size_report(model)['theory'] == stored


def test_equal_reasons_of_all_layers_are_one():
    assert float_rest(trained(layers=2)) == {
        'backbone': 'VisionTransformer: cls_token, pos_embed are added, not multiplied',
        'backbone.layers.*.ln1': 'LayerNorm: normalisation stays in float',
        'backbone.layers.*.ln2': 'LayerNorm: normalisation stays in float',
        'backbone.ln1': 'LayerNorm: normalisation stays in float'}


def test_a_layer_that_stays_alone_is_named_alone():
    rules = {'backbone.layers.1.attn.proj': None, '*.ffn.layers.1': dict(input=None)}
    reasons = float_rest(trained(layers=2, rules=rules))
    assert {name: reason for name, reason in reasons.items() if 'rule' in reason} == {
        'backbone.layers.1.attn.proj.weight': "rule 'backbone.layers.1.attn.proj'",
        'backbone.layers.1.attn.proj.input': "rule 'backbone.layers.1.attn.proj'",
        'backbone.layers.*.ffn.layers.*.input': "rule '*.ffn.layers.1'"}
