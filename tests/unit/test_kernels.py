"""Which products run on integers: all of a quantised model, none that has an operand in float, as the runtime says."""
import pytest
import torch
from exported_models import SWIN, exported, mlp, trained
from helpers import VIT_RULES

from vvq_mm.errors import QuantizationError
from vvq_mm.export.engine import INTEGER
from vvq_mm.export.kernels import integer_products
from vvq_mm.export.packed import save_packed

pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
BACKENDS = ('onnxruntime', 'openvino')
LAYER = 'backbone.layers.0.'
PRODUCTS = ['backbone.patch_embed.projection', LAYER + 'attn.qkv', LAYER + 'attn.query_key', LAYER + 'attn.prob_value',
            LAYER + 'attn.proj', LAYER + 'ffn.layers.0.0', LAYER + 'ffn.layers.1', 'head.layers.head']
needs_int8 = pytest.mark.skipif(not torch.cpu._is_vnni_supported(),
                                reason='runtimes take integer kernels where the processor has an int8 dot product')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A function from the options of a model to its file, which is written once."""
    made = {}

    def get(**options):
        key = repr(options)
        if key not in made:
            made[key] = exported(tmp_path_factory.mktemp('onnx'), trained(**options))
        return made[key]

    return get


@pytest.fixture(params=BACKENDS)
def backend(request):
    pytest.importorskip(request.param)
    return request.param


def floats(path, backend):
    return [product.name for product in integer_products(path, backend) if not product.integer]


@needs_int8
@pytest.mark.parametrize('bits', [2, 8])
def test_every_product_of_a_vit_is_one_of_integers(bits, files, backend):
    path = files(bits=bits, rules=VIT_RULES)
    assert [product.name for product in integer_products(path, backend)] == PRODUCTS
    assert floats(path, backend) == []


@needs_int8
def test_every_product_of_a_swin_is_one_of_integers(files, backend):
    assert len(integer_products(files(base=SWIN), backend)) == 14 and floats(files(base=SWIN), backend) == []


@needs_int8
def test_every_product_with_scales_per_head_is_one_of_integers(files, backend):
    heads = {'*.attn': dict(act=dict(granularity='head')), '*.attn.qkv': dict(weight=dict(granularity='head'))}
    assert floats(files(rules=heads), backend) == []


@needs_int8
@pytest.mark.parametrize('rules, names', [
    ({'*.attn.proj': dict(input=None)}, ['attn.proj']),
    ({'*.attn.proj': dict(weight=None)}, ['attn.proj']),
    ({'*.ffn.layers.1': None}, ['ffn.layers.1']),
    ({'*.attn': dict(prob=None)}, ['attn.prob_value']),
    ({'*.attn': dict(value=dict(offset=True))}, ['attn.prob_value']),
    ({'*.attn': None}, ['attn']),
    ({'*.attn.proj': dict(weight=dict(granularity='head'))}, ['attn.proj']),
    ({'*.attn.proj': dict(input=dict(granularity='head'))}, ['attn.proj']),
    ({'*.ffn.layers.0.0': dict(weight=dict(offset=True))}, ['ffn.layers.0.0']),
], ids=['input in float', 'weight in float', 'layer in float', 'prob in float', 'offset of value', 'attention in float',
        'weight scales along the sum', 'input scales along the sum', 'offset of weight'])
def test_a_product_that_does_not_fit_is_named(rules, names, files, backend):
    assert floats(files(rules=rules), backend) == [LAYER + name for name in names]


def test_the_kernel_is_in_the_words_of_the_runtime(tmp_path):
    pytest.importorskip('onnxruntime')
    path = exported(tmp_path, mlp(rules={'2': None}))
    assert [(product.name, product.kernel) for product in integer_products(path, 'onnxruntime')] == [
        ('0', 'MatMulIntegerToFloat'), ('2', 'Gemm')]


@needs_int8
def test_the_integer_engine_reports_on_a_packed_file(tmp_path):
    model = trained(rules=VIT_RULES)
    save_packed(model, tmp_path / 'vit.safetensors')
    products = integer_products(tmp_path / 'vit.safetensors', 'integer')
    assert len(products) == len(PRODUCTS) and {product.kernel for product in products} == {INTEGER}


def test_an_unknown_backend_is_named(tmp_path):
    with pytest.raises(QuantizationError, match="one of onnxruntime, openvino, integer, got 'tensorrt'"):
        integer_products(tmp_path / 'model.onnx', 'tensorrt')
