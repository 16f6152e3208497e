"""One operator, three ways to run it: eager on floats, on integer codes, and compiled; the same numbers from each."""
import copy
import pickle
import shutil

import pytest
import torch
from helpers import policy
from mmpretrain.models.utils import MultiheadAttention, WindowMSA
from timm.layers import Attention
from timm.models.swin_transformer import WindowAttention
from torch import nn

import vvq_mm
from vvq_mm.layers import product
from vvq_mm.quantizers import LSQQuantizer

# Relative to the largest element of each tensor: a few roundings of float32; one code more or less would be 1e-2. The
# gradient of a single scale or offset is one sum of many terms of both signs, which may cancel to almost nothing
# (float32 itself is then 1e-4 off float64): it is compared with the largest gradient of its kind.
FLOAT32, CANCELLING = 2e-5, 10
TOKENS = (3, 9, 24)
MODULES = {
    'linear': (lambda: nn.Linear(24, 7), TOKENS),
    'patch embedding': (lambda: nn.Conv2d(3, 11, kernel_size=4, stride=4), (2, 3, 12, 8)),
    'convolution': (lambda: nn.Conv2d(3, 5, kernel_size=3, padding=1), (2, 3, 7, 5)),
    'mmpretrain attention': (lambda: MultiheadAttention(24, num_heads=3), TOKENS),
    'mmpretrain window attention': (lambda: WindowMSA(24, window_size=(3, 3), num_heads=3), TOKENS),
    'timm attention': (lambda: Attention(24, num_heads=3, qkv_bias=True), TOKENS),
    'timm window attention': (lambda: WindowAttention(24, num_heads=3, window_size=(3, 3)), TOKENS),
}
ATTENTIONS = [name for name in MODULES if name.endswith('attention')]
HEADS = {slot: dict(granularity='head') for slot in ('query', 'key')}
ROWS = {'*': dict(weight=dict(granularity='channel'))}
VARIANTS = {
    '2 bit': dict(bits=2),
    '3 bit, offsets': dict(bits=3, rules={'*': dict(act=dict(signed=False, offset=True))}),
    '4 bit': dict(bits=4),
    '4 bit, a scale for each row': dict(bits=4, rules=ROWS),
    '8 bit unsigned': dict(bits=8, rules={'*': dict(act=dict(signed=False, offset=True), weight=dict(offset=True))}),
}
HAS_COMPILER = shutil.which('g++') or shutil.which('clang++')
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason='needs a C++ compiler')


@pytest.fixture(autouse=True)
def any_device_multiplies_integers(monkeypatch):
    """``torch._int_mm`` is right, if slow, on processors without int8 instructions too."""
    monkeypatch.setattr(product, 'device_obstacle', lambda device: '')
    yield
    torch.compiler.reset()


def quantised(name, matmul='float', bits=4, rules=None):
    """Return a calibrated module as ``model[0]``, the same for each ``matmul``, and an input."""
    torch.manual_seed(0)
    factory, shape = MODULES[name]
    model, x = nn.Sequential(factory()), torch.randn(shape)
    vvq_mm.quantize_(model, dict(policy(bits, rules), matmul=matmul, strict=True))
    vvq_mm.calibrate(model, [x])
    return model, x


def numbers(run, model, x, dtype=None):
    """Return the output of ``run``, and the gradients of the input and of all parameters of ``model``."""
    x = x.clone().requires_grad_()
    with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None):
        out = run(x)
    random = torch.Generator().manual_seed(1)
    out.backward(torch.randn(out.shape, generator=random).to(out.dtype))
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return dict(output=out.detach(), input=x.grad, **gradients)


def assert_same_numbers(actual, expected, tolerance=FLOAT32):
    assert actual.keys() == expected.keys()
    scales = [other.abs().max() for name, other in expected.items() if '_quantizer' in name and other.numel()]
    for name, one in actual.items():
        other = expected[name]
        assert one.shape == other.shape and one.dtype == other.dtype, name
        if one.numel():
            size = max(scales) if '_quantizer' in name else other.abs().max()
            error = (one.double() - other.double()).abs().max() / size.clamp_min(1e-9)
            assert error <= tolerance * (CANCELLING if '_quantizer' in name else 1), f'{name}: {error:.1e}'


def weight_codes(model):
    return {name: quantizer.codes(module.weight)
            for name, module, slot, quantizer in vvq_mm.iter_quantizers(model) if slot == 'weight'}


def activation_codes(model, x):
    """Return the codes of every activation slot during a forward on ``x``."""
    codes = {}
    handles = [quantizer.register_forward_pre_hook(
        lambda quantizer, args, key=f'{name}.{slot}': codes.__setitem__(key, quantizer.codes(args[0])))
        for name, _, slot, quantizer in vvq_mm.iter_quantizers(model) if slot != 'weight']
    model(x)
    for handle in handles:
        handle.remove()
    return codes


@pytest.mark.parametrize('variant', VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize('name', MODULES)
def test_integer_products_give_the_codes_outputs_and_gradients_of_the_float_ones(name, variant):
    (floats, x), (integers, _) = (quantised(name, matmul, **variant) for matmul in ('float', 'int8'))
    expected, actual = activation_codes(floats, x), activation_codes(integers, x)
    assert actual.keys() == expected.keys() and all(torch.equal(actual[key], expected[key]) for key in expected)
    assert_same_numbers(numbers(integers, integers, x), numbers(floats, floats, x))


@pytest.mark.parametrize('name', ATTENTIONS)
def test_integer_products_know_scales_per_head(name):
    rules = {'0': HEADS}
    (floats, x), (integers, _) = (quantised(name, matmul, rules=rules) for matmul in ('float', 'int8'))
    assert floats[0].query_quantizer.groups == 3
    assert_same_numbers(numbers(integers, integers, x), numbers(floats, floats, x))


@pytest.mark.parametrize('name', MODULES)
def test_integer_products_really_run_on_integers(name, monkeypatch):
    """Or the agreement above would be that of the float product with itself; convolutions stay in float."""
    calls, whole = [], product.integer_product
    monkeypatch.setattr(product, 'integer_product', lambda *args, **options: calls.append(1) or whole(*args, **options))
    model, x = quantised(name, 'int8')
    calls.clear()
    model(x)
    if 'conv' not in name and 'patch' not in name:
        assert len(calls) == (4 if name in ATTENTIONS else 1)


@pytest.mark.parametrize('matmul', ['float', 'int8'])
@pytest.mark.parametrize('name', MODULES)
def test_a_compiled_module_gives_the_same_numbers(name, matmul):
    (floats, x), (other, _) = (quantised(name, mode) for mode in ('float', matmul))
    compiled = torch.compile(other, fullgraph=True, backend='aot_eager')
    assert_same_numbers(numbers(compiled, other, x), numbers(floats, floats, x))


@needs_compiler
@pytest.mark.parametrize('name, matmul', [('linear', 'float'), ('linear', 'int8'), ('timm attention', 'int8')])
def test_a_module_of_compiled_kernels_gives_the_same_numbers(name, matmul):
    (floats, x), (other, _) = (quantised(name, mode) for mode in ('float', matmul))
    compiled = torch.compile(other, fullgraph=True, backend='inductor')
    assert_same_numbers(numbers(compiled, other, x), numbers(floats, floats, x))


def many_quantizers():
    """Quantizers of all widths, signs, with and without offset, with one scale and three."""
    cases = [(bits, signed, offset, groups) for bits in (2, 3, 4, 8) for signed in (True, False)
             for offset in (True, False) for groups in (1, 3)]
    quantizers = nn.ModuleList(LSQQuantizer(bits, signed=signed, offset=offset, groups=groups, axis=1, kind='act')
                               for bits, signed, offset, groups in cases)
    for index, quantizer in enumerate(quantizers):
        quantizer.scale.data = 0.1 + torch.arange(1., quantizer.groups + 1) * 0.07 + index * 0.003
        if quantizer.offset is not None:
            quantizer.offset.data = -0.2 + torch.arange(1., quantizer.groups + 1) * 0.1
        quantizer.ready = True
    return quantizers


@needs_compiler
def test_compiled_kernels_give_the_codes_of_eager_at_ties_too():
    """A kernel that multiplies by 1 / scale, or adds before it divides, would differ where two codes are equally near.
    """
    quantizers = many_quantizers()
    halves = torch.arange(-40, 40) / 2
    inputs = [torch.cat((halves[:, None] * quantizer.scale.detach().repeat(3 // quantizer.groups)
                         + (0 if quantizer.offset is None else quantizer.offset.detach()), torch.randn(500, 3)))
              for quantizer in quantizers]

    def codes(*inputs):
        return [quantizer.codes(x) for quantizer, x in zip(quantizers, inputs)]

    compiled = torch.compile(codes, fullgraph=True, backend='inductor')(*inputs)
    for quantizer, actual, expected in zip(quantizers, compiled, codes(*inputs)):
        assert actual.dtype == expected.dtype and torch.equal(actual, expected), quantizer


def freeze_some(model):
    """Hold every second weight at a code that it does not have."""
    for _, module, slot, quantizer in vvq_mm.iter_quantizers(model):
        if slot == 'weight':
            mask = torch.arange(module.weight.numel()).view(module.weight.shape) % 2 == 0
            quantizer.freeze(mask, -1 - quantizer.codes(module.weight))


@pytest.mark.parametrize('name', ['linear', 'patch embedding', 'timm window attention'])
def test_frozen_weights_are_at_their_codes_in_every_way(name):
    (floats, x), (integers, _) = (quantised(name, matmul) for matmul in ('float', 'int8'))
    free = floats(x)
    for model in (floats, integers):
        freeze_some(model)
    expected = numbers(floats, floats, x)
    assert not torch.allclose(expected['output'], free)
    assert_same_numbers(numbers(integers, integers, x), expected)
    for model in (floats, integers):
        compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
        assert_same_numbers(numbers(compiled, model, x), expected)
        assert all(torch.equal(codes, weight_codes(floats)[key]) for key, codes in weight_codes(model).items())


# Without attention, whose inner codes hang on the rounding of the first product: relative to the largest element
HALF = {'bf16': (torch.bfloat16, 2**-6), 'fp16': (torch.float16, 2**-9)}


@pytest.mark.parametrize('dtype, tolerance', HALF.values(), ids=HALF)
@pytest.mark.parametrize('name', ['linear', 'patch embedding'])
def test_autocast_gives_the_same_numbers_up_to_its_own_rounding(name, dtype, tolerance):
    (floats, x), (integers, _) = (quantised(name, matmul) for matmul in ('float', 'int8'))
    expected = numbers(floats, floats, x, dtype)
    assert expected['output'].dtype == dtype
    assert_same_numbers(numbers(integers, integers, x, dtype), expected, tolerance)
    for model in (floats, integers):
        compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
        assert_same_numbers(numbers(compiled, model, x, dtype), expected, tolerance)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bf16', 'fp16'])
@pytest.mark.parametrize('name', ATTENTIONS)
def test_attention_on_integers_is_not_further_from_float32_than_on_floats(name, dtype):
    """Under autocast inner codes may differ by one, since what they round differs; 8 bits keep that small."""
    (floats, x), (integers, _) = (quantised(name, matmul, bits=8) for matmul in ('float', 'int8'))
    exact = numbers(floats, floats, x)['output']
    errors = []
    for model in (floats, integers):
        result = numbers(model, model, x, dtype)
        assert result['output'].dtype == dtype and all(one.isfinite().all() for one in result.values())
        errors.append((result['output'].float() - exact).norm() / exact.norm())
    assert errors[1] <= max(errors[0] * 1.1, 1e-3)


@pytest.mark.parametrize('name', [name for name in MODULES if name != 'timm window attention'])  # refuses it itself
def test_an_empty_batch_gives_an_empty_output_and_gradients_of_zero(name):
    for matmul in ('float', 'int8'):
        model, x = quantised(name, matmul)
        result = numbers(model, model, x[:0])
        assert result['output'].shape[0] == 0
        assert not any(gradient.any() for gradient in result.values() if gradient is not None), matmul


@pytest.mark.parametrize('name', ATTENTIONS[::2] + ['linear'])
def test_one_image_and_one_token_give_the_same_numbers(name):
    (floats, x), (integers, _) = (quantised(name, matmul) for matmul in ('float', 'int8'))
    assert_same_numbers(numbers(integers, integers, x[:1, :1]), numbers(floats, floats, x[:1, :1]))


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
                         ids=['deepcopy', 'pickle'])
@pytest.mark.parametrize('name', MODULES)
def test_a_copy_of_an_integer_module_is_one(name, copied):
    model, x = quantised(name, 'int8')
    again = copied(model)
    assert (again[0].matmul, again[0].strict, again[0].where) == ('int8', True, '0')
    assert_same_numbers(numbers(again, again, x), numbers(model, model, x), tolerance=0)
