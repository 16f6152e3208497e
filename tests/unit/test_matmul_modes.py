"""The policy's ``matmul='int8'``: where it is kept, where it falls back and what it says then."""
import json
import logging

import pytest
import torch
from helpers import VIT_RULES, build, calibrated, policy, tiny_mlp, tiny_vit_config
from torch import nn

import vvq_mm
from vvq_mm.errors import QuantizationError
from vvq_mm.layers import product
from vvq_mm.policy import QuantPlan
from vvq_mm.policy.rules import RulePolicy

CANNOT = 'this device has no int8 product'


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """A device that multiplies integers, and a log that has said nothing yet."""
    monkeypatch.setattr(product, 'device_obstacle', lambda device: '')
    product._say_once.cache_clear()
    yield
    product._say_once.cache_clear()


@pytest.fixture
def lines(caplog):
    """Return the lines that the package logged since."""
    logger = logging.getLogger('vvq_mm')
    logger.addHandler(caplog.handler)  # whether or not the logger hands records on
    yield lambda: list(dict.fromkeys(record.getMessage() for record in caplog.records if record.name == 'vvq_mm'))
    logger.removeHandler(caplog.handler)


@pytest.fixture
def said(monkeypatch):
    """Return every line that is given to the log, repetitions included."""
    found = []
    monkeypatch.setattr(logging.getLogger('vvq_mm'), 'warning', lambda line, *args: found.append(line))
    return found


@pytest.fixture
def integer_products(monkeypatch):
    """Count the products that ran on integers."""
    calls, whole = [], product.integer_product
    monkeypatch.setattr(product, 'integer_product', lambda *args, **options: calls.append(1) or whole(*args, **options))
    return calls


def int8(rules=None, strict=False, bits=4, **options):
    return dict(policy(bits, rules, **options), matmul='int8', strict=strict)


def mlp(**options):
    """Return a calibrated pair of layers, ``0`` and ``2``, and an input."""
    model, x = tiny_mlp(), torch.randn(5, 6)
    vvq_mm.quantize_(model, int8(**options))
    vvq_mm.calibrate(model, [x])
    return model, x


class Attention(nn.Module):
    """The smallest attention: 2 heads of 4 channels."""
    num_heads = 2

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        query, key, value = self.qkv(x).reshape(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        return self.proj(((query @ key.mT).softmax(-1) @ value).transpose(1, 2).flatten(2))


def attention(**options):
    model, x = nn.Sequential(Attention()), torch.randn(2, 5, 8)
    vvq_mm.quantize_(model, int8(**options))
    vvq_mm.calibrate(model, [x])
    return model, x


# what a policy asks for that cannot be summed on codes -> a module that has it, the layer and the reason in the log
OBSTACLES = {
    'an input in float': (mlp, {'2': dict(input=None)}, '2 (input, weight)', 'input is in float'),
    'a weight in float': (mlp, {'2': dict(weight=None)}, '2 (input, weight)', 'weight is in float'),
    'a scale for each input channel': (mlp, {'2': dict(input=dict(granularity='channel'))}, '2 (input, weight)',
                                       'the scale of input varies along the summed axis'),
    'a weight scale for each input channel': (mlp, {'2': dict(weight=dict(granularity=dict(groups=4, axis=1)))},
                                              '2 (input, weight)', 'the scale of weight varies along the summed axis'),
    'a projection with a scale per head': (attention, {'0.proj': dict(weight=dict(granularity='head'))},
                                           '0.proj (input, weight)',
                                           'the scale of weight varies along the summed axis'),
    'a key in float': (attention, {'0': dict(key=None)}, '0 (query, key)', 'key is in float'),
    'probabilities in float': (attention, {'0': dict(prob=None)}, '0 (prob, value)', 'prob is in float'),
}


def test_an_unknown_word_is_refused():
    with pytest.raises(QuantizationError, match="expected matmul to be one of float, int8, got 'int4' in RulePolicy"):
        RulePolicy(weight=None, act=None, matmul='int4')


def test_products_are_in_float_unless_asked_for(integer_products):
    model = tiny_mlp()
    plan = vvq_mm.quantize_(model, policy())
    x = torch.randn(2, 6)
    vvq_mm.calibrate(model, [x])
    model(x)
    assert (plan.matmul, plan.strict, integer_products) == ('float', False, [])


def test_a_plan_keeps_the_mode_through_json():
    plan = RulePolicy(**_options(int8(strict=True))).plan(tiny_mlp())
    again = QuantPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan and (again.matmul, again.strict) == ('int8', True)


def test_a_plan_saved_before_there_were_modes_runs_on_floats():
    old = {key: value for key, value in RulePolicy(**_options(policy())).plan(tiny_mlp()).to_dict().items()
           if key not in ('matmul', 'strict')}
    assert (QuantPlan.from_dict(old).matmul, QuantPlan.from_dict(old).strict) == ('float', False)


def _options(config):
    return {key: value for key, value in config.items() if key != 'type'}


def test_a_model_that_can_runs_all_its_products_on_integers_and_says_nothing(integer_products, said):
    model, x = mlp(strict=True)
    integer_products.clear()
    model(x)
    assert len(integer_products) == 2 and not said


@pytest.mark.parametrize('factory, rules, where, reason', OBSTACLES.values(), ids=OBSTACLES)
def test_what_cannot_run_on_integers_runs_on_floats_with_one_line(factory, rules, where, reason, said):
    model, x = factory(rules=rules)
    expected = _float_twin(factory, model, rules)(x)
    for _ in range(3):
        actual = model(x)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert said == [f"matmul='int8': {where} runs on floats, since {reason}."]


def _float_twin(factory, model, rules):
    """Return the same weights and scales with float products."""
    twin = nn.Sequential(Attention()) if factory is attention else tiny_mlp()
    vvq_mm.quantize_(twin, policy(rules=rules))
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize('factory, rules, where, reason', OBSTACLES.values(), ids=OBSTACLES)
def test_strict_makes_it_an_error_that_names_layer_and_reason(factory, rules, where, reason):
    with pytest.raises(QuantizationError) as error:
        model, x = factory(rules=rules, strict=True)
        model(x)
    assert f"expected {where} to run with matmul='int8', but {reason}; " in str(error.value)


@pytest.mark.parametrize('granularity', ['channel', dict(groups=2, axis=0)], ids=str)
def test_a_scale_for_each_output_channel_is_no_obstacle(granularity, integer_products):
    model, x = mlp(rules={'*': dict(weight=dict(granularity=granularity))}, strict=True)
    integer_products.clear()
    model(x)
    assert len(integer_products) == 2


def test_a_scale_per_head_of_query_key_value_and_prob_is_no_obstacle(integer_products):
    rules = {'0': {slot: dict(granularity='head') for slot in ('query', 'key', 'value', 'prob')},
             '0.qkv': dict(weight=dict(granularity='head'))}
    model, x = attention(rules=rules, strict=True)
    integer_products.clear()
    model(x)
    assert len(integer_products) == 4


def test_a_device_without_integer_products_runs_on_floats_with_a_line_for_each_layer(monkeypatch, said):
    monkeypatch.setattr(product, 'device_obstacle', lambda device: CANNOT)
    model, x = mlp()
    for _ in range(3):
        actual = model(x)
    torch.testing.assert_close(actual, _float_twin(mlp, model, None)(x), rtol=1e-5, atol=1e-5)
    assert said == [f"matmul='int8': {name} (input, weight) runs on floats, since {CANNOT}." for name in ('0', '2')]


def test_a_device_without_integer_products_is_an_error_if_strict(monkeypatch):
    monkeypatch.setattr(product, 'device_obstacle', lambda device: CANNOT)
    with pytest.raises(QuantizationError, match=rf"expected 0 \(input, weight\) to run .*{CANNOT}"):
        model, x = mlp(strict=True)
        model(x)


def test_other_devices_have_no_integer_product(monkeypatch):
    monkeypatch.undo()
    assert product.device_obstacle('mps') == 'there is no int8 product for mps devices'


@pytest.mark.parametrize('has', [True, False], ids=['with', 'without'])
def test_a_cpu_is_asked_for_its_int8_instructions(monkeypatch, has):
    monkeypatch.undo()
    product.device_obstacle.cache_clear()
    monkeypatch.setattr(torch.cpu, '_is_vnni_supported', lambda: has)
    assert (product.device_obstacle('cpu') == '') == has
    product.device_obstacle.cache_clear()


def test_the_line_reaches_the_log_of_the_package(lines):
    model, x = mlp(rules={'2': dict(input=None)})
    model(x)
    assert lines() == ["matmul='int8': 2 (input, weight) runs on floats, since input is in float."]


def test_the_line_is_said_while_compiling_too(said):
    model, x = mlp(rules={'2': dict(input=None)})
    said.clear()
    product._say_once.cache_clear()
    torch.compiler.reset()
    torch.compile(model, fullgraph=True, backend='eager')(x)
    assert said == ["matmul='int8': 2 (input, weight) runs on floats, since input is in float."]


def test_calibration_and_the_float_function_run_on_floats_silently(integer_products, said):
    model, x = mlp()  # calibrates
    assert not integer_products
    with vvq_mm.quantizer_mode(model, 'float'):
        model(x)
    assert not integer_products and not said


def test_unquantising_leaves_no_trace_of_it():
    model, _ = mlp()
    vvq_mm.unquantize_(model)
    assert not {'matmul', 'strict', 'where'} & {key for module in model.modules() for key in vars(module)}
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize('saved, loaded', [('float', 'int8'), ('int8', 'float')], ids=str)
def test_a_checkpoint_of_one_mode_continues_in_the_other(saved, loaded, tmp_path):
    models = {mode: build(dict(tiny_vit_config(), type='vvq_mm.QATImageClassifier',
                               policy=dict(policy(rules=VIT_RULES), matmul=mode))).eval() for mode in (saved, loaded)}
    torch.save(calibrated(models[saved]).state_dict(), tmp_path / 'model.pth')
    missing, unexpected = models[loaded].load_state_dict(torch.load(tmp_path / 'model.pth', weights_only=True))
    image = torch.randn(2, 3, 32, 32)
    assert not missing and not unexpected
    torch.testing.assert_close(models[loaded](image), models[saved](image), rtol=1e-4, atol=1e-5)
