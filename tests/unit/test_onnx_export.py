"""ONNX files: the same network in standard operators, at narrow widths, for any batch; nothing else in the file."""
import copy
import importlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_models import DEIT, SHAPE, SWIN, TIMM_SWIN, batches, exported, mlp, sequential, trained
from helpers import VIT_RULES, tiny_qat
from torch import nn

import vvq_mm
from vvq_mm.errors import QuantizationError
from vvq_mm.export.codes import onnx_codes
from vvq_mm.export.onnx_export import DEFAULT_OPSET, export_float_onnx
from vvq_mm.export.parity import MAX_ROUNDING, check_parity, compare
from vvq_mm.export.runtimes import open_runtime

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')

OFFSETS = dict(granularity='head', offset=True)
HEADS = {'*.attn': dict(act=dict(granularity='head')), '*.attn.qkv': dict(weight=dict(granularity='head')),
         '*.attn.proj': dict(weight=dict(granularity='head'), input=dict(granularity='head'))}
FLOAT_SLOTS = {'*.attn': dict(prob=None), '*.attn.qkv': dict(input=None), '*.attn.proj': dict(weight=None),
               'head.*': dict(input=None)}
MODELS = {f'ViT W{bits}A{bits}': dict(bits=bits, rules=VIT_RULES) for bits in (2, 3, 4, 8)}
MODELS.update({
    'scale per tensor': dict(),
    'weights alone': dict(rules={'*': dict(weight=dict(granularity='channel'), act=None)}),
    'scale per channel': dict(rules={'*': dict(weight=dict(granularity='channel')),
                                     '*.ffn.layers.1': dict(input=dict(granularity='channel', offset=True))}),
    'scale per head': dict(rules=HEADS, bits=3),
    'weight scale per head alone': dict(rules={'*.attn.proj': dict(weight=dict(granularity='head'))}),
    'offsets of attention operands': dict(rules={'*.attn': dict(act=dict(offset=True))}),
    'offset and scale per head': dict(rules={'*.attn': dict(act=OFFSETS), '*.attn.proj': dict(input=OFFSETS)}),
    'offsets of weights': dict(rules={'*': dict(weight=dict(offset=True))}),
    'unsigned weights with offsets': dict(rules={'*': dict(weight=dict(signed=False, offset=True))}),
    'slots in float': dict(rules=FLOAT_SLOTS),
    'head in float': dict(rules={'head.*': None}),
    'attention in float': dict(rules={'*.attn': None}),
    'Swin': dict(base=SWIN),
    'Swin, scale per head': dict(base=SWIN, rules={'*.w_msa': dict(act=dict(granularity='head'))}),
    'timm DeiT': dict(base=DEIT, bits=3),
    'timm Swin': dict(base=TIMM_SWIN),
})


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A function from a name in ``MODELS`` to the model and its file, which is written once."""
    made = {}

    def get(name):
        if name not in made:
            model = trained(**MODELS[name])
            made[name] = model, exported(tmp_path_factory.mktemp('onnx'), model)
        return made[name]

    return get


def usual_error(model, runtime, images):
    """Return the median over images of the largest difference of logits, in units of their spread.

    A value on the border of two bins may fall on either side; that changes all logits of that one image.
    """
    with torch.no_grad():
        ours = torch.cat([model(batch) for batch in images])
    errors = (ours - torch.cat([runtime(batch) for batch in images])).abs().amax(1)
    return errors.median().item() / ours.std().item()


@pytest.mark.parametrize('name', MODELS)
def test_codes_and_logits_are_those_of_the_model_at_any_batch(name, files):
    model, path = files(name)
    images, runtime = batches(), open_runtime(path, 'onnxruntime')
    parity = compare(model, runtime, images, onnx_codes(path))
    check_parity(parity, name, real_images=False)
    assert bool(parity.codes) == (name != 'weights alone') and parity.rounding < MAX_ROUNDING / 10
    assert usual_error(model, runtime, images) < MAX_ROUNDING


@pytest.mark.parametrize('name', MODELS)
def test_openvino_computes_the_same(name, files):
    pytest.importorskip('openvino')
    model, path = files(name)
    assert usual_error(model, open_runtime(path, 'openvino'), batches()) < MAX_ROUNDING


CONVOLUTIONS = {
    'overlapping, padded': dict(),
    'with an offset': dict(rules={'*': dict(input=dict(offset=True))}),
    'scales of kernels': dict(rules={'*': dict(weight=dict(granularity='channel'))}),
    'scales along the summed channels': dict(rules={'*': dict(weight=dict(granularity=dict(groups=2, axis=1)))}),
}


@pytest.mark.parametrize('options', CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_an_ordinary_convolution_is_the_same(options, tmp_path):
    shape = (4, 8, 8)
    model = sequential(nn.Conv2d(4, 6, 3, padding=1), nn.GELU(), nn.Conv2d(6, 8, 3, stride=2, bias=False), nn.Flatten(),
                       shape=shape, **options)
    path = exported(tmp_path, model)
    images = batches(shape)
    check_parity(compare(model, open_runtime(path, 'onnxruntime'), images, onnx_codes(path)), 'it', real_images=False)
    pytest.importorskip('openvino')
    if model[0].input_quantizer.offset is not None:
        pytest.skip('OpenVINO 2026.4 rounds the offset of a padded convolution to a whole code')
    assert usual_error(model, open_runtime(path, 'openvino'), images) < MAX_ROUNDING


def nodes(path, *kinds):
    return [node for node in onnx.load(path).graph.node if node.op_type in kinds]


def constants(path):
    """Return the constants of a file, by name."""
    return {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize('bias', [True, False])
def test_the_offset_of_an_input_joins_the_bias(bias, tmp_path):
    layers = nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 8, bias=bias)
    model = sequential(*layers, rules={'2': dict(input=dict(signed=False, offset=True))})
    path, layer = exported(tmp_path, model), model[2]
    added = onnx.numpy_helper.to_array(constants(path)[nodes(path, 'Add')[-1].input[1]])
    weight = layer.weight_quantizer(layer.weight).detach().double()
    expected = weight.sum(1) * layer.input_quantizer.offset.item() + (layer.bias.double() if bias else 0)
    np.testing.assert_allclose(added, expected.detach(), rtol=1e-5, atol=1e-7)
    assert len(nodes(path, 'Add')) == 2


def test_frozen_weights_keep_their_frozen_code(tmp_path):
    model = mlp()
    layer = model[2]
    codes = layer.weight_quantizer.codes(layer.weight)
    held = torch.where(codes > 0, codes - 1, codes + 1)
    layer.weight_quantizer.freeze(torch.ones_like(codes, dtype=torch.bool), held)
    stored = onnx.numpy_helper.to_array(constants(exported(tmp_path, model))['2.weight.codes'])
    np.testing.assert_array_equal(stored.astype(int), held.T)


WIDTHS = {
    (2, DEFAULT_OPSET): 'INT4', (2, 25): 'INT2', (3, 25): 'INT4', (4, 21): 'INT4', (8, DEFAULT_OPSET): 'INT8',
}


@pytest.mark.parametrize('bits, opset', WIDTHS, ids=[f'{bits} bits, opset {opset}' for bits, opset in WIDTHS])
@pytest.mark.parametrize('signed', [True, False], ids=['signed', 'unsigned'])
def test_weights_are_stored_in_the_narrowest_type_and_run(bits, opset, signed, tmp_path):
    model = mlp(bits=bits, rules=None if signed else {'*': dict(weight=dict(signed=False, offset=True))})
    path, images = exported(tmp_path, model, opset=opset), [torch.randn(8, 16)]
    kind = WIDTHS[bits, opset] if signed else 'U' + WIDTHS[bits, opset]
    stored = [tensor for name, tensor in constants(path).items() if name.endswith('weight.codes')]
    assert [onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in stored] == [kind] * 2
    assert [entry.version for entry in onnx.load(path).opset_import] == [opset]
    assert usual_error(model, open_runtime(path, 'onnxruntime'), images) < MAX_ROUNDING


@pytest.mark.parametrize('rules', [{}, {'*': dict(weight=dict(offset=True))}], ids=['plain', 'offset'])
def test_no_weight_is_stored_in_float_too(rules, tmp_path):
    path = exported(tmp_path, sequential(nn.Linear(64, 8), shape=(64, ), rules=rules))
    large = [name for name, tensor in constants(path).items() if np.prod(tensor.dims) > 64]
    assert large == ['0.weight.codes']


@pytest.mark.parametrize('name', ['ViT W2A2', 'Swin', 'slots in float'])
def test_every_operator_is_a_standard_one(name, files):
    model = onnx.load(files(name)[1])
    assert {node.domain for node in model.graph.node} == {''}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [('', DEFAULT_OPSET)]
    assert not model.functions


@pytest.mark.parametrize('name', ['ViT W2A2', 'offsets of weights', 'Swin, scale per head'])
def test_all_zero_points_are_zero(name, files):
    path = files(name)[1]
    points = [constants(path)[node.input[2]] for node in nodes(path, 'QuantizeLinear', 'DequantizeLinear')
              if len(node.input) > 2]
    assert points and not any(onnx.numpy_helper.to_array(point).any() for point in points)


@pytest.mark.parametrize('name', ['ViT W4A4', 'ViT W8A8', 'Swin', 'timm DeiT', 'timm Swin'])
def test_both_operands_of_every_product_come_from_dequantize_linear(name, files):
    path = files(name)[1]
    makers = {value: node.op_type for node in onnx.load(path).graph.node for value in node.output}
    products = nodes(path, 'MatMul', 'Gemm', 'Conv', 'Attention')
    assert {makers.get(value) for node in products for value in node.input} == {'DequantizeLinear'}
    assert len(products) == sum(slot in ('weight', 'query', 'prob')
                                for *_, slot, _ in vvq_mm.iter_quantizers(files(name)[0]))


@pytest.mark.parametrize('name, expected', [
    ('ViT W4A4', ['attn.query_key', 'attn.prob_value']), ('slots in float', ['attn.query_key', 'attn.prob_value']),
    ('attention in float', ['attn'])])
def test_products_are_named_after_their_modules(name, expected, files):
    layer = 'backbone.layers.0.'
    assert [node.name for node in nodes(files(name)[1], 'MatMul', 'Gemm', 'Attention')] == [
        'backbone.patch_embed.projection', layer + 'attn.qkv', *(layer + end for end in expected), layer + 'attn.proj',
        layer + 'ffn.layers.0.0', layer + 'ffn.layers.1', 'head.layers.head']


def test_the_file_says_nothing_of_the_machine_that_wrote_it(files):
    model, path = files('ViT W4A4')
    content = path.read_bytes()
    for word in (Path(__file__).parents[2], Path.home(), tempfile.gettempdir(), 'pkg.torch', 'stack_trace', '.py'):
        assert str(word).encode() not in content, word
    written = onnx.load(path)
    assert {entry.key: json.loads(entry.value) for entry in written.metadata_props} == dict(vvq_mm=model.description)
    assert not any(node.metadata_props or node.doc_string for node in written.graph.node)


def test_the_same_model_gives_the_same_bytes(tmp_path):
    model = mlp(rules={'2': dict(input=dict(offset=True))})
    state = {name: value.clone() for name, value in model.state_dict().items()}
    contents = {exported(tmp_path, each).read_bytes() for each in (model, model, copy.deepcopy(model))}
    assert len(contents) == 1
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(hasattr(quantizer, 'scale') for *_, quantizer in vvq_mm.iter_quantizers(model))


def test_the_float_network_is_that_on_the_latent_weights(tmp_path):
    model = trained(rules=VIT_RULES)
    export_float_onnx(model, tmp_path / 'float.onnx', model.description)
    images = batches()
    plain = copy.deepcopy(model)
    vvq_mm.unquantize_(plain)
    assert usual_error(plain, open_runtime(tmp_path / 'float.onnx', 'onnxruntime'), images) < 1e-5
    assert not nodes(tmp_path / 'float.onnx', 'QuantizeLinear')


def broken(name):
    """Return a model that cannot be exported, with a description."""
    model = mlp() if name != 'uncalibrated' else tiny_qat()
    if name == 'float':
        vvq_mm.unquantize_(model)
    elif name == 'scale':
        model[0].input_quantizer.scale.data.fill_(float('nan'))
    elif name == 'bias':
        model[2].bias.data[3] = float('inf')
    elif name == 'part':
        model[0].input_quantizer.keep_float(dict(groups=2, axis=-1, members=[0]))
    model.description = dict(input_shape=list(SHAPE), vvq_mm='0')
    return model


@pytest.mark.parametrize('name, message', [
    ('float', 'a quantised model to export, got Sequential without a quantised layer; give the config'),
    ('uncalibrated', r'calibrated scales, 28 of 28 quantizers have none \(.*, \.\.\.\): the checkpoint is of a full'),
    ('scale', 'finite numbers, got NaN or infinity in 0.input_quantizer.scale; .* an earlier checkpoint'),
    ('bias', 'finite numbers, got NaN or infinity in 2.bias; .* an earlier checkpoint'),
    ('part', r'quantised as a whole, got 0 \(input\) with a float_part'),
])
def test_what_cannot_be_exported_is_named_and_leaves_no_file(name, message, tmp_path):
    with pytest.raises(QuantizationError, match=message):
        exported(tmp_path, broken(name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('opset', [20, 99])
def test_an_opset_that_cannot_be_written_is_refused_with_the_range(opset, tmp_path):
    with pytest.raises(QuantizationError, match=f'opset from 21 .* to [0-9]+ .*, got {opset}; 24 is the default'):
        exported(tmp_path, mlp(), opset=opset)
    assert not list(tmp_path.iterdir())


def test_an_opset_that_pytorch_does_not_reach_is_refused(tmp_path):
    newest = onnx.defs.onnx_opset_version()
    if newest < 27:
        pytest.skip('this onnx knows no opset that PyTorch does not')
    with pytest.raises(QuantizationError, match=f'that PyTorch .* can export to, got {newest}; take a lower one'):
        exported(tmp_path, mlp(), opset=newest)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_asked_for_by_name(tmp_path, monkeypatch):
    real = importlib.import_module

    def without(name, *args):
        if name == 'onnx':
            raise ModuleNotFoundError("No module named 'onnx'", name='onnx')
        return real(name, *args)

    monkeypatch.setattr(importlib, 'import_module', without)
    with pytest.raises(QuantizationError, match=r"the package onnx .*not installed; run `pip install 'vvq_mm\[deploy"):
        exported(tmp_path, mlp())
    assert not list(tmp_path.iterdir())
