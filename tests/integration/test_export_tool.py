"""tools/export.py on the digits: files, figures and summary; bad input ends in a sentence and leaves nothing."""
import importlib
import json
import re
import runpy
import sys

import pytest
import torch
from mmengine.config import Config
from mmpretrain.utils import register_all_modules
from shipped import CONFIGS
from tool_runs import REPOSITORY

import vvq_mm
from vvq_mm.export.packed import load
from vvq_mm.export.runtimes import open_runtime
from vvq_mm.export.sizes import size_report
from vvq_mm.utils.evaluate import build_batches, build_model, calibration_images

onnx = pytest.importorskip('onnx')
for package in ('onnxscript', 'onnxruntime', 'openvino'):
    pytest.importorskip(package)

CONFIG = CONFIGS / 'digits' / 'vit_w4a4.py'
NAMES = [f'digit {number}' for number in range(10)]
SMALL = ['--cfg-options', 'model.backbone.arch.num_layers=1']


def calibrate(folder, name, layers=1, config=CONFIG, **settings):
    """Write a checkpoint as MMEngine does of a quantised digits model: calibrated, not trained."""
    cfg = Config.fromfile(config)
    cfg.merge_from_dict({'model.backbone.arch.num_layers': layers, **settings})
    start = cfg.load_from if layers == 4 and cfg.model.head.num_classes == 10 else None
    torch.manual_seed(0)
    model = build_model(cfg, start)
    vvq_mm.calibrate(model, calibration_images(model, build_batches(cfg.test_dataloader, 64, 64), 1))
    torch.save(dict(meta=dict(dataset_meta=dict(classes=NAMES)), state_dict=model.state_dict()), folder / name)
    return model


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a good checkpoint, and with some that do not fit."""
    register_all_modules()
    folder = tmp_path_factory.mktemp('export')
    calibrate(folder, 'good.pth', layers=4)
    model = calibrate(folder, 'small.pth')
    calibrate(folder, 'two_bits.pth', **{'model.policy.weight.bits': 2, 'model.policy.act.bits': 2})
    calibrate(folder, 'channels.pth', **{'model.policy.weight.granularity': 'channel'})
    calibrate(folder, 'seven.pth', **{'model.head.num_classes': 7})
    cfg = Config.fromfile(CONFIG)
    cfg.model.policy.rules['head.*'] = None
    cfg.dump(str(folder / 'float_head.py'))
    calibrate(folder, 'float_head.pth', config=folder / 'float_head.py')
    state = model.state_dict()
    state['backbone.layers.0.attn.proj.input_quantizer.scale'] = torch.tensor([float('nan')])
    torch.save(dict(state_dict=state), folder / 'nan.pth')
    cut = (folder / 'good.pth').read_bytes()
    (folder / 'cut.pth').write_bytes(cut[:len(cut) // 2])
    (folder / 'text.pth').write_text('not a checkpoint')
    return folder


def run(folder, monkeypatch, capsys, *arguments):
    """Run the tool in this process and return what it printed and how it ended."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'argv', ['export.py', *map(str, arguments)])
    end = None
    try:
        runpy.run_path(str(REPOSITORY / 'tools' / 'export.py'), run_name='__main__')
    except SystemExit as error:
        end = error.code
    return capsys.readouterr().out, end


@pytest.fixture
def tool(folder, monkeypatch, capsys):
    """Arguments -> what the tool said, which must have gone well."""
    def main(*arguments):
        output, end = run(folder, monkeypatch, capsys, *arguments)
        assert not end, end
        return output
    return main


@pytest.fixture
def fails(folder, monkeypatch, capsys):
    """Arguments -> the sentence that the tool ended with; nothing else may have come of it."""
    def main(*arguments):
        before = sorted(folder.rglob('*'))
        output, end = run(folder, monkeypatch, capsys, *arguments)
        assert isinstance(end, str) and '\n' not in end.strip() and 'Traceback' not in output
        assert sorted(folder.rglob('*')) == before
        return end
    return main


@pytest.fixture(scope='module')
def summary(folder):
    """What an export of both formats of the shipped model wrote."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['export.py', str(CONFIG), 'good.pth', '--format', 'packed', 'onnx', '--out', 'out'])
        patch.chdir(folder)
        runpy.run_path(str(REPOSITORY / 'tools' / 'export.py'), run_name='__main__')
    return json.loads((folder / 'out' / 'export.json').read_text())


def test_both_files_and_the_figures_are_written(folder, summary):
    assert sorted(path.name for path in (folder / 'out').iterdir()) == [
        'export.json', 'vit_w4a4.onnx', 'vit_w4a4.safetensors']
    assert {kind: entry['bytes'] for kind, entry in summary['files'].items()} == {
        'packed': (folder / 'out' / 'vit_w4a4.safetensors').stat().st_size,
        'onnx': (folder / 'out' / 'vit_w4a4.onnx').stat().st_size}


def test_sizes_are_compared_with_float32_and_theory(folder, summary):
    sizes, packed = summary['sizes'], load(folder / 'out' / 'vit_w4a4.safetensors')
    assert sizes == size_report(packed) and sizes['widths'] == {'4': 131072, '8': 64 * 64 + 10 * 64}
    for entry in summary['files'].values():
        assert entry['over_float32'] == entry['bytes'] / sizes['float32']
        assert entry['over_theory'] == entry['bytes'] / sizes['theory'] > 1


@pytest.mark.parametrize('kind, backends', [('packed', ['packed']), ('onnx', ['onnxruntime', 'openvino'])])
def test_parity_is_measured_on_the_test_images_in_every_runtime(kind, backends, summary):
    assert summary['images'] == '256 test images'
    assert list(summary['files'][kind]['parity']) == backends
    for backend, parity in summary['files'][kind]['parity'].items():
        assert parity['images'] == 256 and parity['agreement'] >= 99.5 and parity['mean_difference'] < 0.01
        assert abs(parity['accuracy'] - parity['model_accuracy']) <= 0.4  # one image
        assert (parity['codes'] > 0) == (backend != 'openvino') and parity['wrong'] is None


@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason='integer kernels need an int8 dot product')
def test_all_products_are_integer_in_both_runtimes(summary):
    every = dict(integer=26, all=26, others={})
    assert summary['files']['onnx']['integer_products'] == dict(onnxruntime=every, openvino=every)


def test_what_stays_in_float_has_a_reason(summary):
    assert set(summary['float']) == {'backbone', 'backbone.ln1', 'backbone.layers.*.ln1', 'backbone.layers.*.ln2'}
    assert all('stays in float' in reason or 'added' in reason for reason in summary['float'].values())


def test_class_names_come_from_the_checkpoint_into_both_files(folder, summary):
    for file in ('vit_w4a4.onnx', 'vit_w4a4.safetensors'):
        assert open_runtime(folder / 'out' / file).description['classes'] == NAMES


def test_the_summary_says_sizes_parity_and_what_is_in_float(tool, folder):
    output = tool('float_head.py', 'float_head.pth', '--format', 'onnx', '--backends', 'onnxruntime', '--out', 'said',
                  *SMALL)
    saved = json.loads((folder / 'said' / 'export.json').read_text())
    parity = saved['files']['onnx']['parity']['onnxruntime']
    for words in ('float_head.onnx', f'{saved["files"]["onnx"]["over_float32"]:.3f}', f'{parity["agreement"]:.2f}',
                  f'{parity["differing_codes"]:,} of {parity["codes"]:,}', '256 test images', 'said/export.json',
                  'in float: backbone.ln1 (LayerNorm: normalisation stays in float)',
                  "in float: head.layers.head.weight (rule 'head.*')",
                  'not on integers in onnxruntime: head.layers.head (Gemm)'):
        assert words in output


def test_the_opset_is_the_one_asked_for(tool, folder):
    tool(CONFIG, 'small.pth', '--format', 'onnx', '--opset', 21, '--backends', 'onnxruntime', '--out', 'old', *SMALL)
    written = onnx.load(folder / 'old' / 'vit_w4a4.onnx')
    assert [entry.version for entry in written.opset_import] == [21]


def test_two_bits_are_stored_as_two_where_the_opset_has_them(tool, folder):
    tool(CONFIGS / 'digits' / 'vit_w2a2.py', 'two_bits.pth', '--format', 'onnx', '--opset', 25, '--out', 'two', *SMALL)
    saved = json.loads((folder / 'two' / 'export.json').read_text())
    assert list(saved['files']['onnx']['parity']) == ['onnxruntime']
    kinds = {tensor.data_type for tensor in onnx.load(folder / 'two' / 'vit_w2a2.onnx').graph.initializer}
    assert onnx.TensorProto.INT2 in kinds and onnx.TensorProto.INT4 not in kinds


def test_force_replaces_the_files_of_the_same_names_and_no_others(tool, fails, folder):
    (folder / 'full').mkdir()
    (folder / 'full' / 'notes.txt').write_text('mine')
    (folder / 'full' / 'vit_w4a4.safetensors').write_text('old')
    arguments = (CONFIG, 'small.pth', '--out', 'full', *SMALL)
    assert re.search('an empty or new folder to write into, .*full holds files; .* --force', fails(*arguments))
    assert 'NaN' in fails(CONFIG, 'nan.pth', '--out', 'full', '--force', *SMALL)
    assert (folder / 'full' / 'vit_w4a4.safetensors').read_text() == 'old'
    tool(*arguments[:-2], '--force', *SMALL)
    assert load(folder / 'full' / 'vit_w4a4.safetensors').description['num_classes'] == 10
    assert sorted(path.name for path in (folder / 'full').iterdir()) == [
        'export.json', 'notes.txt', 'vit_w4a4.safetensors']
    assert (folder / 'full' / 'notes.txt').read_text() == 'mine'


def test_without_the_images_of_the_config_generated_ones_are_compared(tool, folder):
    tool(CONFIG, 'small.pth', '--out', 'noise', *SMALL, 'test_dataloader=None')
    saved = json.loads((folder / 'noise' / 'export.json').read_text())
    assert saved['images'] == '256 generated images' and saved['files']['packed']['parity']['packed']['images'] == 256
    assert saved['files']['packed']['parity']['packed']['accuracy'] is None


FLOAT = CONFIGS / 'digits' / 'vit_fp32.pth'
BAD = {
    'float checkpoint': ([FLOAT], r'calibrated scales, 52 of 52 .* \.\.\.\): the checkpoint is of a full-precision'),
    'other bits': (['two_bits.pth', *SMALL], r'another plan, with codes from -2 to 1 where the config has -8 to 7'),
    'other granularity': (['channels.pth', *SMALL], 'another granularity; use its policy'),
    'more layers': (['good.pth', *SMALL], 'expected the weights of .* in good.pth, got a file with .* unexpected'),
    'other number of classes': (['seven.pth', *SMALL],
                                r'seven.pth, .*head.layers.head.weight.*\[7, 64\].*as many classes'),
    'NaN': (['nan.pth', *SMALL], 'got NaN or infinity in backbone.layers.0.attn.proj.input_quantizer.scale; the train'),
    'truncated': (['cut.pth'], r'a whole PyTorch checkpoint, but cut.pth .* truncated .*copy or download it again'),
    'text': (['text.pth'], 'a whole PyTorch checkpoint, but text.pth'),
    'no checkpoint': (['nothing.pth'], 'a checkpoint at nothing.pth, but there is no such file'),
    'float config': (['small.pth', *SMALL, 'model.policy=None'], 'unexpected|without a quantised layer'),
    'old opset': (['small.pth', '--format', 'onnx', '--opset', 20, *SMALL], 'an opset from 21 .*, got 20; 24 is'),
    'new opset': (['small.pth', '--format', 'onnx', '--opset', 99, *SMALL], 'an opset from 21 .*, got 99; 24 is'),
    'few images': (['small.pth', '--images', 10, *SMALL], 'at least 256 images to compare on, got 10'),
    'backend of another format': (['small.pth', '--backends', 'openvino', *SMALL],
                                  'backends of packed, integer to compare the packed file in, got openvino'),
    'file as folder': (['small.pth', '--out', 'text.pth', *SMALL], 'a folder to write into, got the file .*text.pth'),
}


@pytest.mark.parametrize('arguments, sentence', BAD.values(), ids=BAD)
def test_bad_input_ends_in_a_sentence_and_leaves_nothing(arguments, sentence, fails):
    checkpoint, *options = arguments
    out = [] if '--out' in options else ['--out', 'new/deeper']
    message = fails(CONFIG, checkpoint, *out, *options)
    assert re.search(sentence, message) and re.match(r'(Quantization|Checkpoint|FileNotFound)Error: expected ', message)


@pytest.mark.parametrize('name', ['onnx', 'onnxscript'])
def test_a_missing_package_is_asked_for_before_anything_is_done(name, fails, monkeypatch):
    real = importlib.import_module

    def without(module, *arguments):
        if module == name:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
        return real(module, *arguments)

    monkeypatch.setattr(importlib, 'import_module', without)
    message = fails(CONFIG, 'small.pth', '--format', 'packed', 'onnx', '--out', 'new', *SMALL)
    assert re.search(rf"the package {name} for .* not installed; run `pip install 'vvq_mm\[deploy\]'`", message)
