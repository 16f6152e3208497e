"""The integer engine: frozen codes against naive float64 products, blocks of models against fake-quantised ones."""
import copy

import pytest
import torch
from helpers import LSQ, VIT_RULES, build, calibrated, policy, tiny_mlp, tiny_qat, tiny_vit
from torch import nn

import vvq_mm
from vvq_mm.errors import QuantizationError
from vvq_mm.export.engine import engine_report, integer_engine
from vvq_mm.export.engine_layers import FrozenMixin
from vvq_mm.layers import AttentionMixin
from vvq_mm.layers.weighted import WeightedMixin

ROUNDING = 2e-6  # of float32, relative to the largest output
WEIGHTS = {
    'tensor': dict(granularity='tensor'),
    'channel': dict(granularity='channel'),
    'blocks of rows': dict(granularity=dict(groups=3, axis=0)),
    'offset': dict(offset=True),
    'offset for each channel': dict(offset=True, granularity='channel'),
    'unsigned with offset': dict(signed=False, offset=True),
}
INPUTS = {
    'signed': {},
    'unsigned': dict(signed=False),
    'unsigned with offset': dict(signed=False, offset=True),
    'signed with offset': dict(offset=True),
}


@pytest.fixture(autouse=True, scope='module')
def any_cpu():
    """Integer products are as exact on CPUs that have no fast kernel for them."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ('vvq_mm.layers.product', 'vvq_mm.export.engine'):
            patch.setattr(f'{module}.device_obstacle', lambda device: '')
        yield


def quantized(layer, weight, input, *shape):
    """Return the layer as the first of a model, quantised and calibrated; its input is (4, *shape)."""
    model = nn.Sequential(layer)
    vvq_mm.quantize_(model, dict(type='RulePolicy', weight={**LSQ, **weight}, act={**LSQ, **input}))
    vvq_mm.calibrate(model, [torch.randn(4, *shape)])
    return model


def values(quantizer, x):
    """Return what the codes of ``x`` stand for, in float64."""
    values = quantizer.codes(x).double() * quantizer.expanded_scale(x).double()
    return values if quantizer.offset is None else values + quantizer.expanded_offset(x).double()


def assert_rounded(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= ROUNDING * expected.abs().max()


@pytest.mark.parametrize('bits', [2, 3, 4, 8], ids=lambda bits: f'{bits}bit')
@pytest.mark.parametrize('input', INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize('weight', WEIGHTS.values(), ids=WEIGHTS)
def test_a_linear_layer_is_the_float64_product_of_its_codes(weight, input, bits):
    model = quantized(nn.Linear(13, 12), dict(weight, bits=bits), dict(input, bits=bits), 5, 13)
    layer, x = model[0], torch.randn(3, 5, 13)
    expected = values(layer.input_quantizer, x) @ values(layer.weight_quantizer, layer.weight).T + layer.bias.double()
    engine = integer_engine(model, compiled=False)
    assert engine_report(engine) == {'0': 'integer'}
    assert_rounded(engine(x), expected)


@pytest.mark.parametrize('input', INPUTS.values(), ids=INPUTS)
def test_a_patch_embedding_is_the_float64_convolution_of_its_codes(input):
    model = quantized(nn.Conv2d(3, 8, 4, stride=4), dict(bits=8), dict(input, bits=8), 3, 8, 12)
    layer, x = model[0], torch.randn(2, 3, 8, 12)
    expected = nn.functional.conv2d(values(layer.input_quantizer, x), values(layer.weight_quantizer, layer.weight),
                                    layer.bias.double(), stride=4)
    engine = integer_engine(model, compiled=False)
    assert engine_report(engine) == {'0': 'integer'}
    assert_rounded(engine(x), expected)


def test_frozen_weights_keep_their_codes():
    model = quantized(nn.Linear(6, 4), {}, {}, 6)
    quantizer, mask = model[0].weight_quantizer, torch.zeros(4, 6, dtype=torch.bool)
    mask[1, 2] = True
    quantizer.freeze(mask, torch.full((4, 6), -8, dtype=torch.int8))
    frozen = integer_engine(model, compiled=False)[0].frozen_codes
    assert frozen[1, 2] == -8 and torch.equal(frozen, quantizer.codes(model[0].weight))


FLOATS = {
    'a weight in float': (nn.Linear(6, 4), None, {}, 'weight is in float'),
    'an input in float': (nn.Linear(6, 4), {}, None, 'input is in float'),
    'scales along the sum': (nn.Linear(6, 4), dict(granularity=dict(groups=2, axis=1)), {},
                             'the scale of weight varies along the summed axis'),
    'inputs with several scales': (nn.Linear(6, 4), {}, dict(granularity='channel'), 'input has 6 scales'),
    'overlapping windows': (nn.Conv2d(6, 4, 3, padding=1), {}, {},
                            'it is a convolution whose windows do not tile the image'),
}


@pytest.mark.parametrize('layer, weight, input, reason', FLOATS.values(), ids=FLOATS)
def test_what_cannot_run_on_integers_keeps_its_fake_quantised_values(layer, weight, input, reason):
    model = nn.Sequential(copy.deepcopy(layer))
    act, weight = (None if slot is None else {**LSQ, **slot} for slot in (input, weight))
    vvq_mm.quantize_(model, dict(type='RulePolicy', weight=weight, act=act))
    x = torch.randn(4, 6, 5, 5) if isinstance(layer, nn.Conv2d) else torch.randn(4, 6)
    vvq_mm.calibrate(model, [x])
    engine = integer_engine(model, compiled=False)
    assert engine_report(engine) == {'0': reason}
    assert torch.equal(engine(x), model(x))


def test_layers_and_products_without_quantizers_are_reported():
    model = calibrated(tiny_qat(rules={**VIT_RULES, 'head.*': None, '*.layers.0.attn': dict(prob=None)}))
    engine = integer_engine(model, compiled=False)
    reasons = {name: reason for name, reason in engine_report(engine).items() if reason != 'integer'}
    assert reasons == {'head.layers.head': 'it is not quantised',
                       'backbone.layers.0.attn (prob, value)': 'prob is in float'}
    assert engine_report(engine)['backbone.layers.1.attn (prob, value)'] == 'integer'


def timm_model(name, **options):
    import timm
    model = timm.create_model(name, num_classes=4, **options)
    vvq_mm.quantize_(model, policy(rules={'patch_embed.proj': 8, 'head*': 8}))
    return model


def swin():
    small = dict(embed_dims=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2])
    model = build(dict(type='SwinTransformer', arch=small, img_size=64, pad_small_map=True))
    vvq_mm.quantize_(model, policy(rules={'patch_embed.projection': dict(input=None)}))
    return model


HEADS = {**VIT_RULES, '*.attn': dict.fromkeys(('query', 'key', 'value', 'prob'), dict(granularity='head')),
         '*.qkv': dict(weight=dict(granularity='head'))}
MODELS = {
    'mmpretrain DeiT': (tiny_qat, 32),
    'scales per head': (lambda: tiny_qat(rules=HEADS), 32),
    '2 bits': (lambda: tiny_qat(bits=2), 32),
    'mmpretrain Swin': (swin, 64),
    'timm DeiT': (lambda: timm_model('deit_tiny_patch16_224', img_size=32, depth=2), 32),
    'timm Swin': (lambda: timm_model('swin_tiny_patch4_window7_224', img_size=64, window_size=4, embed_dim=16,
                                     depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)), 64),
    'timm SwinV2, which bypasses qkv': (lambda: timm_model('swinv2_tiny_window8_256', img_size=64, window_size=4,
                                                           embed_dim=16, depths=(1, 1), num_heads=(1, 1)), 64),
    'timm EVA-02, which bypasses qkv': (lambda: timm_model('eva02_tiny_patch14_224', img_size=56, depth=1), 56),
}


@pytest.fixture(scope='module', params=MODELS.values(), ids=MODELS)
def pair(request):
    """A quantised model with its integer engine, and images."""
    torch.manual_seed(0)
    make, size = request.param
    model = calibrated(make(), size)
    model.eval()
    return model, integer_engine(model, compiled=False), torch.randn(2, 3, size, size)


def test_every_block_computes_what_the_fake_quantised_one_does(pair):
    """Most outputs are equal but for rounding; behind an activation at a border of two codes some are a step apart."""
    model, engine, images = pair
    blocks = {name for name, module in model.named_modules()
              if isinstance(module, (AttentionMixin, WeightedMixin)) and module.SLOTS}
    calls = {}
    for name in blocks:
        model.get_submodule(name).register_forward_hook(
            lambda _, args, kwargs, out, name=name: calls.__setitem__(name, (args, kwargs, out)), with_kwargs=True)
    with torch.no_grad():
        model(images)
        for name, (args, kwargs, expected) in calls.items():
            error = (engine.get_submodule(name)(*args, **kwargs) - expected).abs()
            assert error.median() <= ROUNDING * expected.abs().max(), name
    assert len(calls) >= 6


def test_all_attention_products_run_on_integers(pair):
    _, engine, _ = pair
    products = [reason for name, reason in engine_report(engine).items() if name.endswith(')')]
    assert products and set(products) == {'integer'}


def test_the_model_itself_stays_as_it_is():
    model = calibrated(tiny_qat()).eval()
    before, images = copy.deepcopy(model.state_dict()), torch.randn(2, 3, 32, 32)
    expected = model(images, mode='tensor')
    integer_engine(model, compiled=False)(images, mode='tensor')
    assert torch.equal(model(images, mode='tensor'), expected) and expected.requires_grad
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())


def test_it_holds_codes_and_no_float_weight_of_an_integer_layer():
    engine = integer_engine(calibrated(tiny_qat()), compiled=False)
    layers = [module for module in engine.modules() if isinstance(module, FrozenMixin)]
    assert len(layers) == 10
    assert all(layer.weight.numel() == 0 and layer.frozen_codes.dtype == torch.int8 for layer in layers)
    assert not any(parameter.requires_grad for parameter in engine.parameters())


def test_engines_of_different_plans_do_not_share_compiled_code():
    images = torch.randn(2, 6)
    for bits in (4, 2):
        torch.manual_seed(0)
        model = tiny_mlp()
        vvq_mm.quantize_(model, policy(bits))
        vvq_mm.calibrate(model, [torch.randn(8, 6)])
        engine = integer_engine(model)
        assert (engine(images) - model(images)).abs().max() <= 1e-5
        assert (engine(images[:1]) - model(images[:1])).abs().max() <= 1e-5  # another shape


@pytest.mark.parametrize('model, words', [(tiny_vit, 'quantised'), (tiny_qat, 'calibrated')],
                         ids=['float', 'not calibrated'])
def test_a_model_that_is_not_ready_is_refused(model, words):
    with pytest.raises(QuantizationError, match=words):
        integer_engine(model())


def test_a_device_without_integer_product_is_reported(monkeypatch):
    monkeypatch.setattr('vvq_mm.export.engine.device_obstacle', lambda device: f'no product on {device}')
    model, images = calibrated(tiny_qat()).eval(), torch.randn(2, 3, 32, 32)
    engine = integer_engine(model, compiled=False)
    assert set(engine_report(engine).values()) == {'no product on cpu'}
