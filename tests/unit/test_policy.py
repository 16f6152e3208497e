"""Rules, granularity and plans."""
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from helpers import VIT_RULES, policy, tiny_mlp, tiny_vit

import vvq_mm
from vvq_mm.errors import QuantizationError
from vvq_mm.policy import PlanFile, QuantPlan, RulePolicy
from vvq_mm.quantizers import LSQQuantizer
from vvq_mm.registry import POLICIES


@pytest.fixture(scope='module')
def vit():
    return tiny_vit()


def plan(model, rules=None, **options):
    return POLICIES.build(policy(rules=rules, **options)).plan(model)


def test_without_rules_everything_gets_the_template(vit):
    bits = {config['bits'] for _, _, config in plan(vit).items()}
    assert bits == {4} and plan(vit).count() == dict(weight=10, act=18)  # conv, 2 x 4 linear, head; 2 x 4 operands


def test_probabilities_are_unsigned_whatever_the_template_says(vit):
    slots = plan(vit).slots['backbone.layers.0.attn']
    assert slots['prob']['signed'] is False and slots['query'].get('signed', True) is True


def test_the_most_specific_rule_is_read_last_and_changes_only_what_it_names(vit):
    slots = plan(vit, {'*.ffn.*': 3,
                       '*.layers.1.ffn.layers.1': dict(input=dict(offset=True)),
                       '*.layers.1.ffn.*': dict(weight=2)}).slots
    first, second = (slots[f'backbone.layers.{index}.ffn.layers.1'] for index in (0, 1))
    assert first['weight']['bits'] == 3 and second['weight']['bits'] == 2
    assert second['input']['bits'] == 3 and second['input']['offset']


def test_the_summary_counts_widths(vit):
    words = plan(vit, {'head.*': 8, 'backbone.patch_embed.*': dict(input=None)}).summary()
    assert words == 'weights: 9 at 4 bit, 1 at 8 bit; activations: 16 at 4 bit, 1 at 8 bit, 1 in float'


def test_none_leaves_a_slot_in_float_and_the_plan_says_why(vit):
    result = plan(vit, {'head.*': None})
    assert result.slots['head.layers.head'] == dict(weight=None, input=None)
    assert result.reasons['head.layers.head.input'] == "rule 'head.*'"
    assert 'normalisation' in result.reasons['backbone.ln1']


def test_act_means_every_activation_slot(vit):
    slots = plan(vit, {'*.attn*': dict(act=8)}).slots
    assert {slots['backbone.layers.0.attn'][slot]['bits'] for slot in ('query', 'key', 'value', 'prob')} == {8}
    assert slots['backbone.layers.0.attn.qkv']['weight']['bits'] == 4


def test_a_regular_expression_matches_as_a_whole(vit):
    slots = plan(vit, {r're:backbone\.layers\.\d+\.attn\.qkv': 2}).slots
    changed = [name for name, configs in slots.items() if configs.get('weight', dict(bits=0))['bits'] == 2]
    assert changed == ['backbone.layers.0.attn.qkv', 'backbone.layers.1.attn.qkv']


def test_a_rule_that_matches_nothing_names_the_nearest(vit):
    message = r"'backbone.layers.0.attn.qvk' to match.*nearest names are backbone.layers.0.attn.qkv"
    with pytest.raises(QuantizationError, match=message):
        plan(vit, {'backbone.layers.0.attn.qvk': 8})


def test_an_unknown_slot_names_the_known_ones(vit):
    message = r"\(input, weight; act for all activations\), got 'weights' in the rule"
    with pytest.raises(QuantizationError, match=message):
        plan(vit, {'head.*': dict(weights=8)})


@pytest.mark.parametrize('bits', [1, 9, 3.5], ids=str)
def test_bad_bits_are_refused_when_the_plan_is_applied(vit, bits):
    with pytest.raises(QuantizationError, match=f'integer from 2 to 8, got {bits} for 0 '):
        vvq_mm.quantize_(tiny_mlp(), policy(rules={'0': bits}))


def test_an_unknown_quantizer_option_is_refused_by_name():
    with pytest.raises(QuantizationError, match="options that LSQQuantizer knows for 0 .*grad_scal"):
        vvq_mm.quantize_(tiny_mlp(), policy(grad_scal='l1'))


@pytest.mark.parametrize('name, slot, word, expected', [
    ('backbone.layers.0.attn.qkv', 'weight', 'qkv', (3, 0)),
    ('backbone.layers.0.attn.qkv', 'weight', 'head', (6, 0)),
    ('backbone.layers.0.attn.proj', 'weight', 'head', (2, 1)),
    ('backbone.layers.0.attn.proj', 'input', 'head', (2, -1)),
    ('backbone.layers.0.attn', 'prob', 'head', (2, 1)),
    ('backbone.layers.0.attn.qkv', 'weight', 'channel', (96, 0)),
    ('backbone.layers.0.attn.qkv', 'input', 'channel', (32, -1)),
    ('backbone.patch_embed.projection', 'input', 'channel', (3, 1)),
    ('backbone.layers.0.attn.qkv', 'weight', dict(groups=4, axis=1), (4, 1)),
], ids=str)
def test_granularity_is_resolved_to_groups_on_an_axis(vit, name, slot, word, expected):
    config = plan(vit, {name: {slot: dict(granularity=word)}}).slots[name][slot]
    assert (config['groups'], config['axis']) == expected


@pytest.mark.parametrize('slot, word', [('weight', 'head'), ('input', 'qkv'), ('weight', 'row'),
                                        ('weight', dict(groups=5)), ('weight', dict(axis=1)),
                                        ('weight', dict(groups=0)), ('weight', dict(groups=2, axis=2))], ids=str)
def test_granularity_that_means_nothing_for_a_slot_is_refused(vit, slot, word):
    with pytest.raises(QuantizationError, match='backbone.layers.0.ffn.layers.0.0'):
        plan(vit, {'backbone.layers.0.ffn.layers.0.0': {slot: dict(granularity=word)}})


def test_planning_does_not_change_the_config(vit):
    config = policy(rules=VIT_RULES)
    before = json.dumps(config)
    POLICIES.build(config).plan(vit)
    assert json.dumps(config) == before


def test_a_plan_survives_json(vit, tmp_path):
    first = plan(vit, VIT_RULES)
    (tmp_path / 'plan.json').write_text(json.dumps(first.to_dict()))
    again = PlanFile(str(tmp_path / 'plan.json')).plan(vit)
    assert again.slots == first.slots and QuantPlan.from_dict(first.to_dict()) == first


def test_a_plan_of_another_model_is_refused(vit, tmp_path):
    (tmp_path / 'plan.json').write_text(json.dumps(plan(vit).to_dict()))
    with pytest.raises(QuantizationError, match='made for another model'):
        PlanFile(str(tmp_path / 'plan.json')).plan(tiny_mlp())


def test_a_missing_plan_file_says_how_to_make_one(vit):
    with pytest.raises(QuantizationError, match='print_plan.py CONFIG --out'):
        PlanFile('nowhere.json').plan(vit)


OVERLAPPING = {'*': 4, '*.qkv': 8, '*.layers.0.*': 2, '*.layers.0.attn.qkv': dict(weight=3), 'head.*': None}


@given(st.permutations(list(OVERLAPPING)))
def test_the_order_in_which_rules_are_written_does_not_matter(order):
    """MMEngine sorts the keys of a config that it dumps, and that people give to tools/test.py."""
    model = tiny_vit_once()
    shuffled = plan(model, {key: OVERLAPPING[key] for key in order})
    assert shuffled == plan(model, OVERLAPPING)
    assert shuffled.slots['backbone.layers.0.attn.qkv']['weight']['bits'] == 3
    assert shuffled.slots['backbone.layers.0.attn.qkv']['input']['bits'] == 2
    assert shuffled.slots['backbone.layers.1.attn.qkv']['input']['bits'] == 8


def test_act_is_more_general_than_a_slot(vit):
    slots = plan(vit, {'*.attn': dict(query=8, act=3)}).slots['backbone.layers.0.attn']
    assert (slots['query']['bits'], slots['key']['bits']) == (8, 3)


def test_another_type_leaves_the_options_of_the_old_one_behind(vit):
    result = plan(vit, {'head.*': dict(weight=dict(type='Other'))}, grad_scale='l1', init='lsq')
    weight, act = (result.slots['head.layers.head'][slot] for slot in ('weight', 'input'))
    assert weight['type'] == 'Other' and 'grad_scale' not in weight and weight['init'] == 'lsq'
    assert act['grad_scale'] == 'l1'


def tiny_vit_once(cache=[]):
    cache.append(tiny_vit()) if not cache else None
    return cache[0]


def test_weights_alone_can_be_quantised():
    result = RulePolicy(weight=dict(type='LSQQuantizer', bits=4), act=None).plan(tiny_mlp())
    assert result.count() == dict(weight=2, act=0) and result.reasons['0.input'] == 'the template for it is None'


def test_a_number_sets_the_bits_of_the_slots_that_have_a_template():
    result = RulePolicy(weight=dict(type='LSQQuantizer', bits=4), act=None, rules={'0': 8}).plan(tiny_mlp())
    assert result.slots['0']['weight']['bits'] == 8 and result.slots['0']['input'] is None


def test_a_template_without_type_or_bits_is_refused():
    with pytest.raises(QuantizationError, match=r"expected type and bits for 0 .weight., got {'bits': 4}"):
        RulePolicy(weight=dict(bits=4), act=None).plan(tiny_mlp())


def test_a_later_rule_takes_back_the_reason_for_float():
    result = plan(tiny_mlp(), {'*': None, '0': 8})
    assert result.slots['0']['weight']['bits'] == 8
    assert '0.weight' not in result.reasons and '2.weight' in result.reasons


def test_a_number_without_any_template_is_refused():
    with pytest.raises(QuantizationError, match="a template for a slot of 0, there is none, got 8 in the rule '0'"):
        RulePolicy(weight=None, act=None, rules={'0': 8}).plan(tiny_mlp())


@pytest.mark.parametrize('name, value', [('weight', 4), ('act', 4), ('rules', ['head'])], ids=str)
def test_an_argument_that_is_no_dict_is_refused(name, value):
    with pytest.raises(QuantizationError, match=f'expected {name} of RulePolicy to be a dict or None, got '):
        RulePolicy(**{'weight': None, 'act': None, name: value})


def test_a_model_without_anything_to_quantise_is_refused():
    with pytest.raises(QuantizationError, match='layer, convolution or attention inside, got Linear'):
        plan(torch.nn.Linear(4, 4))


def test_an_unknown_quantizer_names_the_known_ones():
    with pytest.raises(QuantizationError, match="known quantizer .*LSQQuantizer.*got 'LSQ'"):
        vvq_mm.quantize_(tiny_mlp(), dict(type='RulePolicy', weight=dict(type='LSQ', bits=4), act=None))


def test_a_quantizer_named_by_its_class_is_named_by_a_string_in_the_plan():
    """As lazy configs do; a plan is JSON."""
    result = RulePolicy(weight=dict(type=LSQQuantizer, bits=4), act=None).plan(tiny_mlp())
    assert result.slots['0']['weight']['type'] == 'LSQQuantizer' and json.dumps(result.to_dict())


def test_a_layer_with_a_forward_of_its_own_stays_in_float():
    """Its padding would be lost, and with it the shape."""

    class SamePadding(torch.nn.Conv2d):

        def forward(self, x):
            return super().forward(torch.nn.functional.pad(x, (0, 1, 0, 1)))

    result = plan(torch.nn.Sequential(SamePadding(3, 4, 2), torch.nn.Conv2d(4, 4, 1)))
    assert list(result.slots) == ['1'] and result.reasons['0'] == 'SamePadding: no quantised class for it'


@pytest.mark.parametrize('text', ['{', '[]', '{"a": 1}'], ids=['broken', 'list', 'other'])
def test_a_file_that_holds_no_plan_is_refused(text, tmp_path):
    (tmp_path / 'plan.json').write_text(text)
    with pytest.raises(QuantizationError, match='expected the JSON of a plan in .*plan.json, got something else'):
        PlanFile(str(tmp_path / 'plan.json')).plan(tiny_mlp())


def test_an_unknown_slot_in_a_plan_file_is_refused(tmp_path):
    (tmp_path / 'plan.json').write_text('{"slots": {"0": {"wieght": null}}}')
    with pytest.raises(QuantizationError, match='slots of 0 .weight, input. in .*got wieght'):
        PlanFile(str(tmp_path / 'plan.json')).plan(tiny_mlp())
