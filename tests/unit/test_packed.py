"""Packed files: the same network, bit by bit, at its true width; damaged and foreign files are named."""
import copy
import json
import struct

import numpy as np
import pytest
import torch
from helpers import VIT_RULES, build, calibrated, policy, tiny_vit_config
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from mmpretrain.structures import DataSample
from safetensors import safe_open
from safetensors.torch import save_file

import vvq_mm
from vvq_mm.errors import CheckpointError, QuantizationError
from vvq_mm.export.container import Container, read_container
from vvq_mm.export.description import describe
from vvq_mm.export.packed import load, read_packed, save_packed

HEADS = {'*.attn': dict(act=dict(granularity='head')), '*.attn.qkv': dict(weight=dict(granularity='head')),
         '*.attn.proj': dict(weight=dict(granularity='head'))}
ASYMMETRIC = {'*': dict(weight=dict(offset=True), act=dict(offset=True)), '*.attn': dict(act=dict(offset=False))}
CHANNELS = {'*.attn.proj': dict(weight=dict(granularity='channel')), 'head.*': dict(weight=dict(signed=False))}
RULES = dict(tensor=None, qkv=VIT_RULES, head=HEADS, offset=ASYMMETRIC, channel=CHANNELS)
SWIN = dict(
    type='ImageClassifier',
    backbone=dict(type='SwinTransformer', img_size=32, patch_size=2, window_size=4, out_indices=(1, ),
                  arch=dict(embed_dims=16, depths=[2, 2], num_heads=[2, 4])),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=4, in_channels=32, loss=dict(type='CrossEntropyLoss')))
TIMM = dict(type='TimmClassifier', model_name='deit_tiny_patch16_224', img_size=32, patch_size=8, depth=2,
            num_classes=4)


def config(base, bits=2, rules=None):
    """The config of ``base``, quantised."""
    kind = 'vvq_mm.QAT' + base['type']
    return Config(dict(model=dict(base, type=kind, policy=policy(bits, rules))))


def trained(base=None, **options):
    """A calibrated model with its description."""
    cfg = config(tiny_vit_config() if base is None else base, **options)
    model = calibrated(build(copy.deepcopy(cfg.model)))
    model.eval()
    model.description = describe(cfg, model, (3, 32, 32))
    return model


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return trained(rules=VIT_RULES)


@pytest.fixture
def path(model, tmp_path):
    save_packed(model, tmp_path / 'vit.safetensors')
    return tmp_path / 'vit.safetensors'


MODELS = {f'ViT W{bits}A{bits}': dict(bits=bits, rules=VIT_RULES) for bits in (2, 3, 4, 8)}
MODELS.update({f'ViT {name}': dict(rules=rules, bits=3) for name, rules in RULES.items()})
MODELS.update({f'Swin W{bits}A{bits}': dict(base=SWIN, bits=bits) for bits in (2, 3, 4)})
MODELS.update({f'timm W{bits}A{bits}': dict(base=TIMM, bits=bits) for bits in (2, 3, 4)})


@pytest.mark.parametrize('options', MODELS.values(), ids=MODELS)
def test_a_loaded_model_gives_the_same_logits_and_the_same_file(options, tmp_path):
    model, images = trained(**options), torch.randn(2, 3, 32, 32)
    save_packed(model, tmp_path / 'once')
    again = load(tmp_path / 'once')
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    assert not again.training
    save_packed(again, tmp_path / 'twice')
    assert (tmp_path / 'twice').read_bytes() == (tmp_path / 'once').read_bytes()


def test_latent_weights_are_the_dequantised_codes(model, path):
    before = {name: (module, quantizer) for name, module, slot, quantizer in vvq_mm.iter_quantizers(model)
              if slot == 'weight'}
    for name, module, slot, quantizer in vvq_mm.iter_quantizers(load(path)):
        assert quantizer.ready and quantizer.initialized == 1
        if slot == 'weight':
            old, old_quantizer = before[name]
            assert torch.equal(module.weight, old_quantizer(old.weight))
            assert torch.equal(quantizer.codes(module.weight), old_quantizer.codes(old.weight))


def test_frozen_weights_keep_their_frozen_code(tmp_path):
    model, images = trained(), torch.randn(1, 3, 32, 32)
    layer = model.backbone.layers[0].attn.proj
    codes = layer.weight_quantizer.codes(layer.weight)
    held = torch.where(codes > 0, codes - 1, codes + 1)
    layer.weight_quantizer.freeze(torch.rand(codes.shape) < 0.5, held)
    save_packed(model, tmp_path / 'frozen')
    again = load(tmp_path / 'frozen')
    assert torch.equal(again(images), model(images))
    assert not torch.equal(layer.weight_quantizer.codes(layer.weight), codes)
    assert again.backbone.layers[0].attn.proj.weight_quantizer.frozen is None


def test_a_loaded_model_can_be_trained_on(path):
    model, samples = load(path), [DataSample().set_gt_label(index) for index in (0, 3)]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sum(model.loss(torch.randn(2, 3, 32, 32), samples).values()).backward()
    optimizer.step()
    assert not [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]


def test_its_checkpoint_fits_the_training_config(model, path):
    missing, unexpected = model.load_state_dict(load(path).state_dict())
    assert not missing and not unexpected


def test_class_names_come_back(model, tmp_path):
    names = ['tench, Tinca tinca', '"quoted"', 'Käfer', '']
    save_packed(model, tmp_path / 'file', dict(model.description, classes=names))
    assert load(tmp_path / 'file').description == dict(model.description, classes=names)


def test_a_shared_float_parameter_is_stored_once_and_stays_shared(tmp_path):
    model = trained()
    names = [name for name in read(model, tmp_path).tensors if name.startswith('backbone.layers.1.ln')]
    first, second = model.backbone.layers[0], model.backbone.layers[1]
    second.ln1.bias = first.ln1.bias
    assert set(names) - set(read(model, tmp_path).tensors) == {'backbone.layers.1.ln1.bias'}


def read(model, folder):
    save_packed(model, folder / 'file')
    return read_packed(folder / 'file')


def test_a_quantised_weight_in_two_layers_is_refused(tmp_path):
    model = trained()
    model.backbone.layers[1].attn.qkv.weight = model.backbone.layers[0].attn.qkv.weight
    with pytest.raises(QuantizationError, match='in one place, got .*layers.0.attn.qkv.weight, which is .*layers.1'):
        save_packed(model, tmp_path / 'file')
    assert not list(tmp_path.iterdir())


def test_an_uncalibrated_model_is_refused_and_leaves_no_file(model, tmp_path):
    waiting = build(dict(tiny_vit_config(), type='vvq_mm.QATImageClassifier', policy=policy()))
    with pytest.raises(QuantizationError, match='expected calibrated scales'):
        save_packed(waiting, tmp_path / 'file', model.description)
    assert not list(tmp_path.iterdir())


def test_safetensors_opens_it_and_the_codes_have_their_true_width(model, path):
    with safe_open(path, 'pt') as file:
        assert set(file.metadata()) == {'vvq_mm', 'sha256'}
        for name, (shape, bits, signed) in json.loads(file.metadata()['vvq_mm'])['weights'].items():
            assert file.get_tensor(f'{name}.codes').shape == (-(-np.prod(shape) * bits // 8), )
        kept = set(file.keys())
    assert not [name for name in kept if name.endswith(('code_range', 'initialized', '_quantizer.scale', '.frozen'))]
    latent = {name for name, *_ in vvq_mm.iter_quantizers(model)}
    assert not [name for name in latent if f'{name}.weight' in kept]


def test_the_index_of_a_window_is_not_stored(tmp_path):
    model = trained(SWIN)
    assert any(name.endswith('relative_position_index') for name in model.state_dict())
    assert not [name for name in read(model, tmp_path).tensors if name.endswith('relative_position_index')]


def test_deit_t_at_two_bits_is_as_small_as_its_codes_scales_and_float_rest(tmp_path):
    """1.02 is the bar: header, description and the names of 1,000 classes are the rest."""
    cfg = Config.fromfile('configs/vvq/deit_t_w2a2.py')
    cfg.model.distiller = None
    model = build(copy.deepcopy(cfg.model))
    vvq_mm.calibrate(model, [torch.randn(1, 3, 224, 224)])
    save_packed(model, tmp_path / 'file', describe(cfg, model, (3, 224, 224)))
    packed = read_packed(tmp_path / 'file')
    theory = sum(tensor.numel() * tensor.element_size() for tensor in packed.tensors.values())
    codes = sum(-(-quantizer.bits * module.weight.numel() // 8)
                for _, module, slot, quantizer in vvq_mm.iter_quantizers(model) if slot == 'weight')
    assert len(packed.description['classes']) == 1000 and codes < theory < codes + 300_000
    assert (tmp_path / 'file').stat().st_size <= 1.02 * theory


def numpy_reader(path):
    """Return the values of all quantised weights, and scale and offset of all slots, by docs/packed_format.md alone."""
    data = path.read_bytes()
    start = 8 + struct.unpack('<Q', data[:8])[0]
    header = json.loads(data[8:start])
    about = json.loads(header['__metadata__']['vvq_mm'])

    def tensor(name, dtype):
        begin, end = header[name]['data_offsets']
        return np.frombuffer(data[start + begin:start + end], dtype)

    scales, offsets = iter(tensor('scales', '<f4')), iter(tensor('offsets', '<f4'))
    slots, plan = {}, about['plan']
    used = {f'{module}.{slot}': number for module, of in plan['slots'].items() for slot, number in of.items()}
    for name in sorted((name for name, number in used.items() if number is not None), key=str.encode):
        config = plan['configs'][used[name]]
        slots[name] = config, [next(scales) for _ in range(config['groups'])], [
            next(offsets) if config['offset'] else np.float32(0) for _ in range(config['groups'])]
    weights = {}
    for name, (shape, bits, signed) in about['weights'].items():
        config, scale, offset = slots[name]
        stream = np.unpackbits(tensor(f'{name}.codes', 'u1'), bitorder='little')[:np.prod(shape) * bits]
        place = 2 ** np.arange(bits)
        place[-1] *= -1 if signed else 1
        codes = (stream.reshape(-1, bits) @ place).reshape(shape)
        groups = np.arange(shape[config['axis']]) // (shape[config['axis']] // config['groups'])
        view = [-1 if axis == config['axis'] else 1 for axis in range(len(shape))]
        scale, offset = (np.float32(values)[groups].reshape(view) for values in (scale, offset))
        weights[name] = codes.astype('f4') * np.maximum(scale, np.float32(1e-5)) + offset
    return weights, slots


@pytest.mark.parametrize('rules', RULES.values(), ids=RULES)
def test_a_reader_written_from_the_page_alone_gets_the_same_numbers(rules, tmp_path):
    model = trained(bits=3, rules=rules)
    save_packed(model, tmp_path / 'file')
    weights, slots = numpy_reader(tmp_path / 'file')
    quantizers = list(vvq_mm.iter_quantizers(model))
    assert len(slots) == len(quantizers) and len(weights) == sum(slot == 'weight' for *_, slot, _ in quantizers)
    for name, module, slot, quantizer in quantizers:
        _, scale, offset = slots[f'{name}.{slot}']
        assert quantizer.scale.tolist() == scale
        assert offset == ([0] * quantizer.groups if quantizer.offset is None else quantizer.offset.tolist())
        if slot == 'weight':
            np.testing.assert_array_equal(weights[f'{name}.weight'], quantizer(module.weight).detach())


@given(st.data())
def test_a_flipped_bit_anywhere_is_noticed(model, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp('flipped')
    save_packed(model, folder / 'vit')
    content = bytearray((folder / 'vit').read_bytes())
    place = data.draw(st.one_of(st.integers(0, 200), st.integers(0, len(content) - 1)))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    (folder / 'vit').write_bytes(content)
    with pytest.raises(CheckpointError, match='vit'):
        load(folder / 'vit')


def test_an_altered_weight_is_said_not_to_fit_the_checksum(path):
    path.write_bytes(path.read_bytes()[:-1] + b'?')
    with pytest.raises(CheckpointError, match='content of .*vit.safetensors to fit its checksum.*export'):
        load(path)


@pytest.mark.parametrize('keep', [0, 5, 100, -1], ids=['nothing', 'length', 'header', 'almost all'])
def test_a_truncated_file_is_named(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r'vit.safetensors.*truncated.*copy it again'):
        load(path)


def test_other_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing'):
        load(tmp_path / 'nothing')
    save_file(dict(weight=torch.zeros(2)), tmp_path / 'foreign', dict(format='pt'))
    with pytest.raises(CheckpointError, match='foreign is a safetensors file that vvq_mm did not write'):
        load(tmp_path / 'foreign')
    torch.save(dict(state_dict={}), tmp_path / 'torch.pth')
    with pytest.raises(CheckpointError, match='torch.pth .* of another kind'):
        load(tmp_path / 'torch.pth')


def rewritten(path, change):
    """Let ``change`` edit metadata and tensors of a file, and give it a checksum that fits, as another writer could."""
    text, tensors = read_container(path)
    text = json.loads(text)
    change(text, tensors)
    path.write_bytes(Container(json.dumps(text), tensors).to_bytes())
    return path


CHANGES = {
    'version': (lambda text, _: text.update(version=2), 'expected format version 1, got 2'),
    'code': (lambda text, _: text['model'].update(type='os.system'), "expected a registered class.*'os.system'"),
    'less': (lambda _, tensors: tensors.pop('scales'), 'scales'),
    'more': (lambda _, tensors: tensors.update(other=torch.zeros(1)), 'other'),
    'shape': (lambda _, tensors: tensors.update(scales=torch.ones(3)), r'scales to be .*got \(3,\)'),
    'width': (lambda text, _: text['weights']['head.layers.head.weight'].__setitem__(1, 4), 'uint8 for 128 codes'),
}


@pytest.mark.parametrize('change, words', CHANGES.values(), ids=CHANGES)
def test_a_file_that_another_writer_made_wrong_is_named(path, change, words):
    with pytest.raises(CheckpointError, match=f'vit.safetensors.*{words}'):
        load(rewritten(path, change))
