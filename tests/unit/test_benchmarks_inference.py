"""References, bars, tables and picture of the inference benchmark on invented times; its parts on tiny models."""
import os
import sys

import pytest
import torch
from helpers import build, calibrated, policy, tiny_vit_config
from mmengine.config import Config
from onnx_files import write_linear
from shipped import CONFIGS

from vvq_mm.benchmarks.float_reference import load_float, sort_files, write_float
from vvq_mm.benchmarks.inference import Measured, TestImages, _resident, count_correct, in_fresh_process
from vvq_mm.benchmarks.inference_bars import fastest, judge
from vvq_mm.benchmarks.inference_plot import plot_inference
from vvq_mm.benchmarks.inference_report import compact_report, make_results, markdown_tables
from vvq_mm.benchmarks.inference_rows import BF16, FP32, OURS, Row
from vvq_mm.benchmarks.measure import Timing
from vvq_mm.errors import QuantizationError
from vvq_mm.export.description import describe
from vvq_mm.export.packed import save_packed
from vvq_mm.surgery import quantizer_mode

DEIT = dict(model=dict(backbone=dict(arch='deit-tiny')), input_shape=[3, 224, 224])
SECONDS = {'torch': [4., 4.], 'ort': [2., 3.], 'ov': [1., 2.], 'ov bf16': [.5, 1.], 'ort ours': [1., 1.5],
           'ov ours': [.5, 1.2]}


@pytest.fixture
def rows(tmp_path):
    """Rows of a file of 2 MB (float) or half of one (ours)."""
    files = {name: tmp_path / name for name in ('float', 'ours')}
    for path, size in zip(files.values(), (2_000_000, 500_000)):
        path.write_bytes(bytes(size))
    kinds = [('torch', FP32, 'pytorch'), ('ort', FP32, 'onnxruntime'), ('ov', FP32, 'openvino'),
             ('ov bf16', BF16, 'openvino'), ('ort ours', OURS, 'onnxruntime'), ('ov ours', OURS, 'openvino')]
    return [Row(name, group, backend, str(files['ours' if group == OURS else 'float']))
            for name, group, backend in kinds]


def measured(integer=(74, 74), sizes=(8, ), **seconds):
    timings = {name: Timing(values) for name, values in {**SECONDS, **seconds}.items()}
    return Measured({size: timings for size in sizes},
                    {name: list(integer) if 'ours' in name else None for name in timings})


def test_the_fastest_row_is_the_one_of_least_median_in_its_group_and_runtime(rows):
    timings = measured().timings[8]
    assert fastest(rows, timings, FP32) == 'ov'
    assert fastest(rows, timings, FP32, 'PyTorch') == 'torch'
    assert fastest(rows, timings, BF16, 'PyTorch') is None


def test_bars_are_ratios_round_by_round_within_a_runtime_and_over_all(rows):
    bars = {bar['what']: bar for bar in judge(rows, measured(sizes=(1, 8)), DEIT)}
    assert {what: (bar['measured'], bar['met']) for what, bar in bars.items()} == {
        'batch 8: ort ours / ort': (.5, True),
        'batch 8: ov ours / ov': (pytest.approx(.55), True),
        'batch 1: ov ours / ov (fastest of all)': (pytest.approx(.55), True),
        'batch 8: ov ours / ov (fastest of all)': (pytest.approx(.55), True)}


def test_a_bar_that_is_exceeded_is_not_met(rows):
    bars = judge(rows, measured(**{'ov ours': [2., 2.], 'ort ours': [2., 2.]}), DEIT)
    assert bars and not any(bar['met'] for bar in bars)


def test_a_row_without_integer_kernels_counts_for_no_bar_and_is_not_called_int8(rows):
    part = measured(integer=(0, 74))
    assert judge(rows, part, DEIT) == []
    products = {result['name']: result['products'] for result in make_results(rows, {1: part}, {})}
    assert products['ov ours'] == 'FP32: no integer kernel in 74' and products['ov bf16'] == 'BF16'


@pytest.mark.parametrize('change', [dict(input_shape=[3, 32, 32]), dict(model=dict(backbone=dict(arch='swin-tiny')))],
                         ids=['image size', 'model'])
def test_other_models_and_image_sizes_have_no_bars(rows, change):
    assert judge(rows, measured(), {**DEIT, **change}) == []


def test_a_result_has_the_ratio_to_its_own_runtime_and_to_the_fastest(rows):
    results = {result['name']: result for result in make_results(rows, {1: measured()}, {('ort ours', 8): 3 * 2**20})}
    ours = results['ort ours']
    assert (ours['own_reference'], ours['own_ratio']) == ('ort', .5)
    assert (ours['reference'], ours['ratio']) == ('ov', .875)
    assert (ours['file_bytes'], ours['peak_bytes'], ours['images_per_second']) == (500_000, 3 * 2**20, 6.4)
    assert ours['products'] == 'int8: 74 of 74' and ours['accuracy'] is None


def test_results_without_a_full_precision_row_are_refused(rows):
    part = measured()
    part.timings[8] = {'ov ours': Timing([1.])}
    with pytest.raises(ValueError, match='a full-precision row'):
        make_results(rows, {1: part}, {})


def test_the_table_says_what_was_not_measured_with_a_dash(rows):
    table = markdown_tables(make_results(rows, {1: measured()}, {}))
    assert '**1 thread, batch 8**' in table
    assert '| ov ours | int8: 74 of 74 | 850.0 | 675.0–1,025.0 | 0.55 | 0.55 | 0.50 | – | – |' in table


def test_the_short_table_has_a_column_per_setting_and_the_reference_in_bold(rows):
    one, two = measured(sizes=(1, 8)), measured(sizes=(1, 8))
    one.accuracy = {'ov ours': 97.5}
    results = make_results(rows, {1: one, 2: two}, {})
    run = dict(machine=dict(device='a CPU', torch='2'), results=results, bars=[],
               settings=dict(model='deit', versions=dict(openvino='2026'), rounds=2))
    text = compact_report([run, run])
    assert text.count('| row | products in | 1 thread, batch 1 | 1 thread, batch 8 | 2 threads, batch 1 |') == 2
    assert text.count('**1,500.0 (1.00)**') == 2 * 4
    line = next(line for line in text.splitlines() if line.startswith('| ov ours |'))
    assert line.endswith('| 850.0 (0.55) | 0.50 | – | 97.50 |')


def test_the_picture_is_written_even_where_points_coincide(rows, tmp_path):
    part = measured(sizes=(1, 8), **{name: [1., 1.] for name in SECONDS})
    part.accuracy = dict.fromkeys(SECONDS, 97.5)
    plot_inference(make_results(rows, {1: part}, {}), tmp_path / 'new' / 'plot.png', subtitle='model')
    assert (tmp_path / 'new' / 'plot.png').read_bytes().startswith(b'\x89PNG')


def save(path, bits=4):
    """Write a tiny packed file and return its model."""
    config = dict(tiny_vit_config(), type='vvq_mm.QATImageClassifier', policy=policy(bits))
    model = calibrated(build(config)).eval()
    save_packed(model, path, describe(Config(dict(model=config)), model, (3, 32, 32)))
    return model


@torch.no_grad()
def test_the_float_network_is_the_model_without_its_quantisers(tmp_path):
    model = save(tmp_path / 'a.safetensors')
    packed, onnx, description = sort_files([tmp_path / 'a.safetensors'])
    floats = write_float(description, tmp_path, packed[0], opsets=())
    for name, module in model.named_modules():  # what is left of the weights in the file
        if getattr(module, 'weight_quantizer', None) is not None:
            module.weight.copy_(module.weight_quantizer(module.weight))
    images = torch.randn(2, 3, 32, 32)
    with quantizer_mode(model, 'float'):
        torch.testing.assert_close(load_float(floats.checkpoint)(images), model(images))
    assert onnx == [] and floats.onnx == {}


def test_files_of_two_models_are_refused(tmp_path):
    for name, bits in (('a', 4), ('b', 2)):
        save(tmp_path / name, bits)
    with pytest.raises(QuantizationError, match='expected files of one model, got another plan in .*b than in .*a'):
        sort_files([tmp_path / 'a', tmp_path / 'b'])


def test_other_files_are_refused(tmp_path):
    torch.save({}, tmp_path / 'model.pth')
    with pytest.raises(QuantizationError, match='expected packed and ONNX files of tools/export.py, got a PyTorch'):
        sort_files([tmp_path / 'model.pth'])
    with pytest.raises(QuantizationError, match='without a description'):
        sort_files([write_linear(tmp_path / 'other.onnx', description=None)])


def test_accuracy_is_counted_over_all_images_in_batches_of_one_size():
    sizes = []

    def always_zero(images):
        sizes.append(len(images))
        return torch.eye(10)[:1].repeat(len(images), 1)

    config = str(CONFIGS / 'digits' / 'vit_w4a4.py')
    dataset = Config.fromfile(config).test_dataloader.dataset
    from mmpretrain.registry import DATASETS
    labels = DATASETS.build(dataset).get_gt_labels()
    preprocessor = dict(type='ClsDataPreprocessor', mean=[0.], std=[1.])
    found = count_correct(dict(zero=always_zero), TestImages(config, preprocessor), batch_size=100)
    assert found == {'zero': pytest.approx(100 * (labels == 0).mean())}
    assert set(sizes) == {100} and len(labels) % 100


def take_and_free():
    """Return the bytes of a tensor that is freed again, and by how much the peak rose above what was held before."""
    now, peak = _resident()
    size = peak - now + 50 * 2**20  # beyond any peak before
    torch.ones(size, dtype=torch.uint8)
    return size, _resident()[1] - now


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_peak_memory_sees_what_was_freed_again():
    size, rise = in_fresh_process(take_and_free)  # one whose allocator holds nothing from other tests
    assert size - 2**20 <= rise <= 2 * size  # Linux counts in portions


def test_a_process_returns_its_result_or_an_error_in_a_sentence():
    assert in_fresh_process(os.getpid) != os.getpid()
    with pytest.raises(QuantizationError, match='ended from outside or crashed'):
        in_fresh_process(os._exit, 3)
