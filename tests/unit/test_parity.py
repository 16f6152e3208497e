"""Parity: nothing is found between equal networks; whatever is wrong in a file is found, and where."""
import copy

import numpy as np
import pytest
import torch
from exported_models import SHAPE, SWIN, exported, trained
from helpers import VIT_RULES

import vvq_mm
from vvq_mm.errors import QuantizationError
from vvq_mm.export.codes import LOGITS, follow, onnx_codes, torch_codes
from vvq_mm.export.parity import CODE_BATCHES, Parity, check_parity, compare
from vvq_mm.export.runtimes import open_runtime

LAYER = 'backbone.layers.0.'


@pytest.fixture(scope='module')
def model():
    return trained(rules=VIT_RULES, layers=2)


@pytest.fixture(scope='module')
def images():
    return list(torch.randn(3, 8, *SHAPE, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope='module')
def path(model, tmp_path_factory):
    pytest.importorskip('onnx')
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    return exported(tmp_path_factory.mktemp('parity'), model)


def compared(model, other, images):
    with torch.no_grad():
        return compare(model, other, images, torch_codes(other))


@pytest.mark.parametrize('base', [None, SWIN], ids=['ViT', 'Swin'])
def test_equal_networks_do_not_differ(base, images):
    model = trained(base)
    parity = compared(model, copy.deepcopy(model), images)
    assert (parity.images, parity.agreement, parity.max_difference, parity.mean_difference) == (24, 100., 0., 0.)
    assert parity.codes > 0 and (parity.differing_codes, parity.rounding) == (0, 0.)
    assert parity.first is None and parity.wrong is None and parity.spread > 0
    check_parity(parity, 'it')


def test_the_figures_are_those_of_the_logits(images):
    ours, theirs = torch.randn(24, 4), torch.randn(24, 4)
    logits = {id(batch): (a, b) for batch, a, b in zip(images, ours.split(8), theirs.split(8))}
    network = torch.nn.Module()
    network.forward = lambda batch: logits[id(batch)][0]
    labels = theirs.argmax(1)
    parity = compare(network, lambda batch: logits[id(batch)][1], images, labels=labels)
    difference = (ours - theirs).abs().double().numpy()
    agreement = 100 * (ours.argmax(1) == labels).double().mean()
    assert (parity.agreement, parity.model_accuracy, parity.accuracy) == (agreement, agreement, 100)
    assert parity.max_difference == pytest.approx(difference.max())
    assert parity.mean_difference == pytest.approx(difference.mean())
    assert (parity.codes, parity.rounding) == (0, None)


def scale_of_a_layer(model):
    model.backbone.layers[0].attn.proj.weight_quantizer.scale.data.mul_(2)


def scale_of_an_activation(model):
    model.backbone.layers[1].attn.prob_quantizer.scale.data.mul_(2)


def one_code(model):
    """From one end of the grid to the other."""
    layer = model.backbone.layers[0].attn.qkv
    codes = layer.weight_quantizer.codes(layer.weight)
    mask = torch.zeros_like(codes, dtype=torch.bool)
    mask[0, (codes[0] == codes[0].max()).nonzero()[0]] = True
    layer.weight_quantizer.freeze(mask, torch.full_like(codes, -8))


def clip_limit(model):
    quantizer = model.backbone.layers[1].attn.query_quantizer
    quantizer.grid = quantizer.grid._replace(qmax=quantizer.qmax - 1)


def classifier(model):
    model.head.layers.head.weight_quantizer.scale.data.mul_(1.01)


@pytest.mark.parametrize('damage, slot', [
    (scale_of_a_layer, LAYER + 'ffn.layers.0.0.input'),
    (scale_of_an_activation, 'backbone.layers.1.attn.prob'),
    (one_code, LAYER + 'attn.query'),
    (clip_limit, 'backbone.layers.1.attn.query'),
])
def test_what_is_wrong_is_named_by_the_first_slot_that_sees_it(damage, slot, model, images):
    other = copy.deepcopy(model)
    damage(other)
    parity = compared(model, other, images)
    assert parity.wrong['slot'] == slot
    with pytest.raises(QuantizationError, match=f'it to be the trained network, but its codes differ from {slot} on'):
        check_parity(parity, 'it', real_images=False)


def test_a_wrong_classifier_is_found_behind_the_last_codes(model, images):
    other = copy.deepcopy(model)
    classifier(other)
    parity = compared(model, other, images)
    assert parity.agreement == 100 and parity.wrong is None and parity.rounding > 1e-3
    with pytest.raises(QuantizationError, match=r'logits differ where all codes are equal, .* the classifier'):
        check_parity(parity, 'it', real_images=False)


def test_a_flip_at_a_border_hides_nothing_behind_it(model, images):
    """Its consequences are many codes of later layers; they must neither be taken for a defect, nor excuse one."""
    other = copy.deepcopy(model)
    quantizer = other.backbone.layers[0].attn.qkv.input_quantizer
    quantizer.register_forward_pre_hook(lambda _, inputs: (_flipped(inputs[0], quantizer), ))
    parity = compared(model, other, images)
    slot = LAYER + 'attn.qkv.input'
    assert parity.differing_codes == len(images) and parity.wrong is None and parity.max_difference > 0
    assert parity.first == dict(slot=slot, share=1 / torch_codes(other)(images[0])[slot].size, largest=1)
    scale_of_an_activation(other)
    assert compared(model, other, images).wrong['slot'] == 'backbone.layers.1.attn.prob'


def _flipped(x, quantizer):
    """Move one value, of code 0 or so, into the next bin."""
    x = x.clone()
    place = tuple((quantizer.codes(x) == 0).nonzero()[0])
    x[place] = quantizer.scale.item()
    return x


def test_codes_of_a_few_batches_are_read(model, images):
    read, calls = torch_codes(model), []
    compare(model, model, images * 3, lambda batch: calls.append(1) or read(batch))
    assert len(calls) == CODE_BATCHES < len(images) * 3


def test_slots_that_a_file_lacks_are_named(model, images):
    codes = torch_codes(model)(images[0])
    del codes[LAYER + 'attn.key']
    with pytest.raises(QuantizationError, match=f'codes of every activation, got none of {LAYER}attn.key'):
        follow(model, images[0], codes)


def transposed(codes):
    return np.swapaxes(codes, -1, -2)


def reordered(codes):
    return codes.reshape(2, -1)


@pytest.mark.parametrize('change', [transposed, reordered, lambda codes: codes[:, None]],
                         ids=['transposed', 'patches', 'axis of length 1'])
def test_codes_may_be_arranged_in_another_way(change, model, images):
    codes = torch_codes(model)(images[0])
    codes[LAYER + 'attn.value'] = change(codes[LAYER + 'attn.value'])
    differences, logits = follow(model, images[0], codes)
    assert not any(difference.any() for difference in differences.values())
    np.testing.assert_array_equal(logits, codes[LOGITS])


def test_the_most_probable_class_counts_on_images_and_not_on_noise():
    parity = Parity(200, 99., 1., 0.1, 1.)
    with pytest.raises(QuantizationError, match='at least 99.5 % of 200 images, got 99.00 % with it; .* be read'):
        check_parity(parity, 'it')
    check_parity(parity, 'it', real_images=False)
    check_parity(Parity(200, 99.5, 1., 0.1, 1.), 'it')


@pytest.mark.parametrize('rounding', [float('nan'), float('inf')])
def test_logits_that_are_no_numbers_are_found(rounding):
    with pytest.raises(QuantizationError, match='its logits differ where all codes are equal'):
        check_parity(Parity(8, 100., 0., 0., 1., rounding=rounding), 'it')


def test_a_file_equals_its_model(model, path, images):
    parity = compare(model, open_runtime(path, 'onnxruntime'), images, onnx_codes(path))
    check_parity(parity, path.name, real_images=False)
    assert parity.codes == sum(codes.size for batch in images for slot, codes in torch_codes(model)(batch).items()
                               if slot != LOGITS)
    slots = {f'{name}.{slot}' for name, _, slot, _ in vvq_mm.iter_quantizers(model) if slot != 'weight'}
    assert set(onnx_codes(path)(images[0])) == {LOGITS, *slots}


def tampered(path, folder, name, change):
    """Write a file with another value of a constant."""
    import onnx
    written = onnx.load(path)
    tensor = next(tensor for tensor in written.graph.initializer if tensor.name == name)
    values = change(onnx.numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(written, folder / 'tampered.onnx')
    return folder / 'tampered.onnx'


def one_code_off(codes):
    codes[0, 0] = -8 if codes[0, 0] > 0 else 7
    return codes


@pytest.mark.parametrize('constant, change, slot', [
    (LAYER + 'ffn.layers.1.weight.codes', one_code_off, 'backbone.layers.1.attn.qkv.input'),
    (LAYER + 'ffn.layers.1.weight.scale', lambda scale: 2 * scale, 'backbone.layers.1.attn.qkv.input'),
    ('backbone.layers.1.attn.prob.high', lambda limit: limit * np.float32(14 / 15), 'backbone.layers.1.attn.prob'),
    ('backbone.layers.1.attn.value.scale', lambda scale: scale / 2, 'backbone.layers.1.attn.value'),
], ids=['code', 'weight scale', 'clip limit', 'activation scale'])
def test_a_file_that_was_tampered_with_is_found(constant, change, slot, model, path, images, tmp_path):
    wrong = tampered(path, tmp_path, constant, change)
    parity = compare(model, open_runtime(wrong, 'onnxruntime'), images, onnx_codes(wrong))
    with pytest.raises(QuantizationError, match=f'tampered.onnx to be .*, but its codes differ from {slot} on'):
        check_parity(parity, wrong.name, real_images=False)


def figures(**changes):
    return Parity(**{**dict(images=256, agreement=100., max_difference=0., mean_difference=0., spread=1.), **changes})


def test_logits_that_are_not_numbers_are_no_parity():
    with pytest.raises(QuantizationError, match='NaN or infinite'):
        check_parity(figures(max_difference=float('nan')), 'it', real_images=False)


def test_generated_images_without_codes_have_a_coarse_bound():
    check_parity(figures(agreement=90., mean_difference=0.4), 'it', real_images=False)
    with pytest.raises(QuantizationError, match='logits of generated images differ by 0.6'):
        check_parity(figures(agreement=90., mean_difference=0.6), 'it', real_images=False)
