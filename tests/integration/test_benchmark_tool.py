"""tools/benchmark.py from the command line at its smallest, and what it runs on a GPU as far as a CPU can."""
import importlib.util
import json
import shutil
import sys

import pytest
import torch
from mmpretrain.utils import register_all_modules
from tool_runs import REPOSITORY, run_tool

from vvq_mm.benchmarks import Timing, peak_memory, saved_bytes
from vvq_mm.benchmarks.bars import Measured, find_references, judge
from vvq_mm.benchmarks.training import Workload
from vvq_mm.benchmarks.variants import make_variants

TOOL = REPOSITORY / 'tools' / 'benchmark.py'
CONFIG = REPOSITORY / 'configs' / 'digits' / 'vit_w4a4.py'
ROWS = ('FP32, MKL*', 'eager, everything on', 'compiled, everything on', 'textbook, loop*', 'straight*')


def benchmark(*arguments, **options):
    return run_tool(sys.executable, TOOL, *arguments, **options)


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
    """Output and folder of one run: a block of the digits model, two rounds, no compiler behind torch.compile."""
    folder = tmp_path_factory.mktemp('benchmark')
    output = benchmark(CONFIG, '--depth', 1, '--batch-size', 2, '--rounds', 2, '--backend', 'aot_eager', '--out', 'out',
                       '--rows', *ROWS, cwd=folder)
    return output, folder


@pytest.fixture
def run(measured):
    return json.loads((measured[1] / 'out' / 'benchmark.json').read_text())


@pytest.fixture(scope='module')
def workload():
    register_all_modules()
    return Workload(str(CONFIG), batch=2, depth=1)


def timed(cuda, seconds):
    """Rows of these seconds by name, of the variants of a device."""
    variants = {variant.name: variant for variant in make_variants(cuda, ('oneDNN', 'MKL'))}
    return {name: Measured(variants[name], Timing(values), saved_bytes=int(100 * values[0]))
            for name, values in seconds.items()}


@pytest.mark.slow
def test_every_row_is_measured(run):
    names = [result['name'] for result in run['results']]
    assert {'FP32, MKL, fused attention', 'FP32, MKL, explicit attention', *ROWS[1:3]} <= set(names)
    for result in run['results']:
        assert min(result['seconds']['median'], result['saved_bytes'], result['peak_bytes']) > 0, result['name']
    assert min(result['ratio'] for result in run['results'] if result['name'].startswith('FP32')) == 1


@pytest.mark.slow
def test_bars_are_computed_from_the_rows(run):
    bars, results = ({entry[key]: entry for entry in entries}
                     for key, entries in (('what', run['bars']), ('name', run['results'])))
    assert bars['eager, everything on / FP32']['measured'] == results['eager, everything on']['ratio']
    explicit = results['FP32, MKL, explicit attention']['saved_bytes']
    assert bars['saved for backward, eager / FP32 with explicit attention'][
        'measured'] == results['eager, everything on']['saved_bytes'] / explicit
    assert bars['tracker state, bytes per weight']['measured'] <= 6
    assert 'int8 compiled, everything on / FP32' not in bars


@pytest.mark.slow
def test_settings_that_decide_the_numbers_are_recorded(run):
    settings, machine = run['settings'], run['machine']
    assert settings['batch_size'] == 2 and settings['drop_path'] == 0 and settings['image_size'] == 32
    assert settings['libraries'] and settings['precision'] and machine['threads'] == 1


@pytest.mark.slow
def test_table_and_plot_are_written_and_printed(measured):
    output, folder = measured
    assert 'eager, everything on / FP32' in output and '1.00 is FP32, MKL' in output
    assert '| textbook, loop over bins, float tracker |' in (folder / 'out' / 'benchmark.md').read_text()
    assert (folder / 'out' / 'benchmark.png').read_bytes().startswith(b'\x89PNG')


@pytest.fixture
def tool():
    """The tool as a module."""
    spec = importlib.util.spec_from_file_location('benchmark_tool', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(tool, monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *map(str, arguments)])
    args = tool.parse_args()
    (tool.report if args.report else tool.benchmark)(args)


@pytest.mark.slow
def test_report_is_written_between_the_marks_and_then_agrees(measured, tool, monkeypatch, tmp_path):
    page, results = tmp_path / 'page.md', tmp_path / 'two_threads.json'
    shutil.copy(measured[1] / 'out' / 'benchmark.json', results)
    page.write_text('before\n<!-- benchmark: begin -->\nold\n<!-- benchmark: end -->\nafter\n')
    with pytest.raises(SystemExit, match='--write'):
        call(tool, monkeypatch, '--report', results, results, '--check', page)
    call(tool, monkeypatch, '--report', results, results, '--write', page)
    call(tool, monkeypatch, '--report', results, results, '--check', page)
    text = page.read_text()
    assert text.startswith('before\n') and text.endswith('after\n') and 'old' not in text
    assert text.count('| variant | ratio |') == 2


def test_file_without_marks_is_refused(tool, monkeypatch, tmp_path):
    page, results = tmp_path / 'page.md', tmp_path / 'results.json'
    page.write_text('no marks')
    results.write_text('[]')
    monkeypatch.setattr(tool, 'compact_report', str)
    with pytest.raises(OSError, match='expected <!-- benchmark: begin -->'):
        call(tool, monkeypatch, '--report', results, '--write', page)


@pytest.mark.parametrize('arguments, words', [
    pytest.param(['--rows', 'eager*'], 'a full-precision row', id='no-reference'),
    pytest.param(['--device', 'cuda'], 'a CUDA device', id='no-gpu',
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')),
])
def test_what_cannot_be_measured_is_an_error_in_a_sentence(tool, monkeypatch, arguments, words):
    monkeypatch.setattr(tool, 'prepare', lambda *_: dict(precision='', libraries=['MKL']))
    with pytest.raises(ValueError, match=words):
        call(tool, monkeypatch, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['FP32, explicit attention', 'BF16 autocast, fused attention', 'eager, everything on',
                                  'int8 eager, everything on', 'textbook, loop over bins, float tracker'])
def test_eager_rows_of_a_gpu_run(workload, name):
    variant = next(variant for variant in make_variants(cuda=True) if variant.name == name)
    assert variant.autocast == (not name.startswith('FP32'))
    if 'int8' in name and not torch.cpu._is_vnni_supported():
        pytest.skip('this CPU has no int8 product')
    step = workload.step(variant)
    step()
    assert saved_bytes(step.forward, step.constants()) > 0
    assert peak_memory(step) > 0


def test_all_of_ours_start_from_the_same_numbers(workload):
    variants = {variant.name: variant for variant in make_variants(cuda=False)}
    names = 'eager, distillation', 'int8 eager, everything on'
    first, second = (workload.step(variants[name]).model.state_dict() for name in names)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_explicit_attention_of_a_float_model_gives_the_loss_of_the_fused_one(workload):
    variants = {variant.name: variant for variant in make_variants(cuda=False)}
    fused, explicit = (workload.step(variants[f'FP32, MKL, {name} attention']) for name in ('fused', 'explicit'))
    torch.testing.assert_close(fused.forward(), explicit.forward())


def test_roofline_limits_are_positive_times(tool, workload):
    block = tool.roofline(workload, torch.bfloat16, 'MKL', size=64)
    assert block['work']['act_elements'] > 0 and min(block['limits'].values()) > 0
    assert block['quantiser_bytes']['separate'] > block['quantiser_bytes']['fused']


def test_reference_on_a_cpu_is_the_fastest_eager_float32_step():
    rows = timed(False, {'FP32, MKL, fused attention': [3.], 'FP32, oneDNN, explicit attention': [2.],
                         'FP32, oneDNN, explicit attention, compiled': [1.], 'BF16 autocast, fused attention': [1.]})
    assert find_references(rows, cuda=False) == ('FP32, oneDNN, explicit attention',
                                                 'FP32, oneDNN, explicit attention, compiled',
                                                 'FP32, oneDNN, explicit attention')


def test_bars_of_a_gpu_are_over_the_fastest_compiled_bfloat16_step():
    rows = timed(True, {'FP32, fused attention': [1.], 'BF16 autocast, fused attention, compiled': [2., 4.],
                        'BF16 autocast, explicit attention, compiled': [5., 5.],
                        'compiled, everything on': [2.2, 4.4], 'int8 compiled, everything on': [2.2, 4.4]})
    bars = judge(rows, find_references(rows, cuda=True), cuda=True)
    assert [bar['measured'] for bar in bars] == pytest.approx([1.1, 1.1])
    assert [bar['met'] for bar in bars] == [True, False]


def test_a_share_is_taken_round_by_round():
    rows = timed(False, {'FP32, MKL, explicit attention': [1., 1., 1.], 'eager, + regulariser': [2., 20., 2.],
                         'eager, distillation': [1.5, 15., 1.]})
    bars = judge(rows, find_references(rows, cuda=False))
    assert [(bar['what'], bar['measured']) for bar in bars] == [("regulariser's share of the step, eager", 0.25)]


def test_the_tables_of_the_readme_are_those_of_the_committed_runs(tool, monkeypatch):
    runs = sorted((REPOSITORY / 'docs' / 'results').glob('benchmark_*.json'))
    assert runs
    call(tool, monkeypatch, '--report', *runs, '--check', REPOSITORY / 'README.md')
