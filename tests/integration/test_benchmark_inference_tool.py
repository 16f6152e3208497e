"""tools/benchmark_inference.py from the command line at its smallest: the digits model, calibrated and not trained."""
import json
import sys

import pytest
import torch
from mmengine.config import Config
from mmpretrain.utils import register_all_modules
from shipped import CONFIGS
from tool_runs import REPOSITORY, run_tool

import vvq_mm
from vvq_mm.export.description import describe
from vvq_mm.export.onnx_export import export_onnx
from vvq_mm.export.packed import save_packed
from vvq_mm.utils.evaluate import build_batches, build_model, calibration_images, evaluate

pytestmark = pytest.mark.slow
TOOL = REPOSITORY / 'tools' / 'benchmark_inference.py'
CONFIG, FLOAT = CONFIGS / 'digits' / 'vit_w4a4.py', CONFIGS / 'digits' / 'vit_fp32.pth'
ROWS = ['PyTorch FP32, MKL', 'OpenVINO FP32, opset 21', 'ONNX Runtime, ours', 'OpenVINO, ours']
COMMON = ['--threads', 1, '--batch-sizes', 1, 3, '--rounds', 2]


def benchmark(*arguments, **options):
    return run_tool(sys.executable, TOOL, *arguments, **options)


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
    """Output of a run, its folder with the exported files, and the accuracy of the model that they come from."""
    for name in ('onnx', 'onnxscript', 'onnxruntime', 'openvino'):
        pytest.importorskip(name)
    register_all_modules()
    folder, cfg = tmp_path_factory.mktemp('inference'), Config.fromfile(CONFIG)
    model = build_model(cfg, str(FLOAT))
    vvq_mm.calibrate(model, calibration_images(model, build_batches(cfg.val_dataloader, 64), 1))
    description = describe(cfg, model, (1, 32, 32))
    save_packed(model, folder / 'vit.safetensors', description)
    export_onnx(model, folder / 'vit.onnx', description)
    output = benchmark('vit.safetensors', 'vit.onnx', *COMMON, '--accuracy', '--config', CONFIG, '--images', 100,
                       '--float-checkpoint', FLOAT, '--out', 'out', '--rows', *ROWS, cwd=folder)
    return output, folder, evaluate(model, build_batches(cfg.test_dataloader, 100)).top1


@pytest.fixture
def results(measured):
    """Results by batch size and name."""
    run = json.loads((measured[1] / 'out' / 'inference.json').read_text())
    return {(result['batch_size'], result['name']): result for result in run['results']}


def test_every_row_is_measured_at_every_batch_size(results):
    assert {size for size, _ in results} == {1, 3}
    assert {name for _, name in results} == set(ROWS)
    for result in results.values():
        assert min(result['seconds']['median'], result['file_bytes'], result['peak_bytes']) > 0, result['name']
    for size in (1, 3):
        assert min(result['ratio'] for (batch, _), result in results.items() if batch == size) <= 1


def test_accuracy_of_a_file_is_that_of_its_model(results, measured):
    for name in ('ONNX Runtime, ours', 'OpenVINO, ours'):
        assert results[1, name]['accuracy'] == results[3, name]['accuracy']
        assert results[1, name]['accuracy'] == pytest.approx(measured[2], abs=1.01)  # an image at a bin border
    assert results[1, 'PyTorch FP32, MKL']['accuracy'] > 95


def test_rows_of_ours_say_how_many_products_ran_on_integers(results):
    for name in ('ONNX Runtime, ours', 'OpenVINO, ours'):
        assert results[1, name]['products'].startswith(('int8: ', 'FP32: no integer kernel'))
        assert results[1, name]['products'].endswith(' 26')  # 4 blocks of 4 layers and 2 products, patches, head


def test_table_and_plot_are_written_and_printed(measured):
    output, folder, _ = measured
    assert '1 thread, batch 3' in output and 'written to out' in output
    assert '| OpenVINO, ours |' in (folder / 'out' / 'inference.md').read_text()
    assert (folder / 'out' / 'inference.png').read_bytes().startswith(b'\x89PNG')


def test_report_is_written_between_the_marks_and_then_agrees(measured):
    page = measured[1] / 'page.md'
    page.write_text('before\n<!-- inference: begin -->\noutdated\n<!-- inference: end -->\nafter\n')
    report = ['--report', 'out/inference.json']
    assert '--write page.md' in benchmark(*report, '--check', 'page.md', cwd=measured[1], expect=1)
    for action in ('--write', '--check'):
        benchmark(*report, action, 'page.md', cwd=measured[1])
    text = page.read_text()
    assert text.startswith('before\n') and text.endswith('after\n')
    assert 'outdated' not in text and '| OpenVINO, ours |' in text


def test_a_missing_runtime_leaves_its_rows_out_and_says_so(measured):
    folder = measured[1]
    (folder / 'blocked').mkdir()
    (folder / 'blocked' / 'openvino.py').write_text("raise ModuleNotFoundError('none', name='openvino')\n")
    output = benchmark('vit.onnx', *COMMON, '--no-memory', '--out', 'without', '--rows', 'PyTorch FP32, MKL', '*ours',
                       cwd=folder, environment=dict(PYTHONPATH=f'{folder / "blocked"}:{REPOSITORY}'))
    assert 'OpenVINO, ours left out: expected the package openvino' in output
    names = {result['name'] for result in json.loads((folder / 'without' / 'inference.json').read_text())['results']}
    assert names == {'PyTorch FP32, MKL', 'ONNX Runtime, ours'}


def test_the_integer_engine_is_a_row_of_the_packed_file(measured):
    if not torch.cpu._is_vnni_supported():
        pytest.skip('this CPU has no int8 product')
    benchmark('vit.safetensors', '--threads', 1, '--batch-sizes', 1, '--rounds', 1, '--no-memory', '--out', 'engine',
              '--rows', 'PyTorch FP32, MKL', '*engine*', cwd=measured[1])
    results = json.loads((measured[1] / 'engine' / 'inference.json').read_text())['results']
    assert results[-1]['name'] == 'integer engine, ours' and results[-1]['products'].startswith('int8: ')


@pytest.mark.parametrize('arguments, words', [
    (['vit.onnx', FLOAT], 'QuantizationError: expected packed and ONNX files of tools/export.py, got a PyTorch'),
    (['vit.onnx', '--rows', '*ours'], 'QuantizationError: expected a full-precision row to compare with, got none'),
    (['no.onnx'], 'FileNotFoundError: expected an exported file at no.onnx'),
], ids=['checkpoint', 'no reference', 'no file'])
def test_what_cannot_be_measured_ends_in_a_sentence(measured, arguments, words):
    output = benchmark(*arguments, cwd=measured[1], expect=1)
    assert output.strip().splitlines()[-1].startswith(words) and 'Traceback' not in output
