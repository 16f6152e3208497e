"""tools/analysis/oscillation.py on two tiny trainings, with and without bin regularisation."""
import importlib.util
import json
import shutil
import sys

import pytest
import torch
from helpers import VIT_RULES
from qat_config import make_digit_labels, qat_config, qat_hooks
from runner_config import run
from tool_runs import REPOSITORY, run_tool

from vvq_mm.errors import CheckpointError, QuantizationError
from vvq_mm.quantizers import LSQQuantizer
from vvq_mm.registry import QUANTIZERS

TOOL = REPOSITORY / 'tools' / 'analysis' / 'oscillation.py'
PICTURES = {'share_over_time.png', 'share_by_layer.png', 'flips_by_distance.png', 'latent_weights.png'}
LAST = 3
LAYER = 'backbone.layers.0.attn.proj'


@QUANTIZERS.register_module()
class DoubledScaleQuantizer(LSQQuantizer):
    """A quantiser of a user's own whose scale is derived from its parameter."""

    def current_scale(self):
        return 2 * self.scale


def train(folder, labels, name, hooks=None, **options):
    config = qat_config(folder / name, labels, epochs=1, hooks=hooks or qat_hooks(), val_cfg=None, val_dataloader=None,
                        val_evaluator=None, **options)
    hooks = [hook for hook in config.custom_hooks if hook['type'] != 'vvq_mm.AccuracyReportHook']
    config.merge_from_dict(dict(custom_hooks=hooks))
    run(config, f'{folder.name}_{name}')
    return folder / name


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Work folders `regularised` and `plain`."""
    folder = tmp_path_factory.mktemp('trainings')
    labels = make_digit_labels(folder)
    train(folder, labels, 'regularised')
    train(folder, labels, 'plain', qat_hooks(regularizer=None))
    return folder


@pytest.fixture
def report(monkeypatch, tmp_path, capsys):
    """Calls the tool in this process, without pictures unless told, and returns the JSON and what was printed."""
    spec = importlib.util.spec_from_file_location('oscillation_tool', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def call(*arguments, pictures=False):
        if not pictures:
            monkeypatch.setattr(tool, 'draw', lambda *_: None)
        monkeypatch.setattr(sys, 'argv', ['oscillation.py', *map(str, arguments), '--out', str(tmp_path / 'report')])
        tool.report(tool.parse_args())
        data = json.loads((tmp_path / 'report' / 'oscillation.json').read_text())
        return dict(data, printed=capsys.readouterr().out, files={path.name for path in tmp_path.glob('report/*')})

    return call


def saved(folder, iteration=LAST):
    return torch.load(folder / f'iter_{iteration}.pth', weights_only=True)


def change(source, target, edit):
    """Copy a work folder's last checkpoint alone, changed by ``edit``, as a training that has just begun leaves it."""
    target.mkdir()
    checkpoint = saved(source)
    edit(checkpoint)
    torch.save(checkpoint, target / f'iter_{LAST}.pth')
    return target


@pytest.mark.slow
def test_the_command_line_compares_two_trainings(folder, tmp_path):
    output = run_tool(sys.executable, TOOL, folder / 'plain', folder / 'regularised', '--out', 'out', cwd=tmp_path)
    assert 'a: plain' in output and 'b: regularised' in output and 'weights oscillate' in output
    assert {path.name for path in (tmp_path / 'out').iterdir()} == PICTURES | {'oscillation.json'}


def test_shares_are_those_of_the_statistics_in_the_checkpoint(folder, report):
    entry = report(folder / 'regularised')['runs'][0]
    layers = saved(folder / 'regularised')['vvq_oscillation']['layers']
    assert entry['layers'].keys() == layers.keys() and len(layers) == 8
    for name, tensors in layers.items():
        oscillating = (tensors['frequency'] > 0.005).double().mean().item()
        assert entry['layers'][name]['oscillating'] == pytest.approx(oscillating)
        assert entry['layers'][name]['frequency'] == pytest.approx(tensors['frequency'].double().mean().item())
    assert any(row['oscillating'] for row in entry['layers'].values())


def beyond(folder, factor=1):
    """Share of a layer's weights beyond the last code, from the tensors in the checkpoint."""
    state = saved(folder)['state_dict']
    position = state[f'{LAYER}.weight'].double() / state[f'{LAYER}.weight_quantizer.scale'].double() / factor
    return ((position < -2) | (position > 1)).double().mean().item()


def test_distances_are_those_of_the_trained_weights_and_scales(folder, report):
    rows = report(folder / 'regularised')['runs'][0]['layers']
    assert rows[LAYER]['beyond'] == pytest.approx(beyond(folder / 'regularised'), abs=2e-3)


def test_a_derived_scale_is_that_of_the_quantiser(folder, report, tmp_path):
    def derive(checkpoint):
        checkpoint['meta']['cfg'] = checkpoint['meta']['cfg'].replace('LSQQuantizer', 'DoubledScaleQuantizer')

    rows = report(change(folder / 'plain', tmp_path / 'derived', derive))['runs'][0]['layers']
    assert rows[LAYER]['beyond'] == pytest.approx(beyond(folder / 'plain', factor=2), abs=2e-3)
    assert beyond(folder / 'plain', factor=2) < beyond(folder / 'plain') - 0.01


def test_history_is_that_of_the_training(folder, report):
    entry = report(folder / 'regularised')['runs'][0]
    assert entry['history'] == saved(folder / 'regularised')['vvq_oscillation']['history']
    assert entry['history']['iteration'] == [1, 2, 3] and entry['max_iters'] == 3


def test_two_runs_have_the_same_keys_and_the_plain_one_no_regulariser(folder, report):
    got = report(folder / 'regularised', folder / 'plain')
    first, second = got['runs']
    assert first.keys() == second.keys() and first['layers'].keys() == second['layers'].keys()
    assert 'BinRegularizer' in first['state'] and 'no regulariser' in second['state']


def test_layers_choose_what_is_drawn(folder, report):
    got = report(folder / 'plain', '--layers', '*.0.attn.*', '*.1.ffn.layers.1', pictures=True)
    assert got['files'] == PICTURES | {'oscillation.json'}
    assert list(got['runs'][0]['histograms']) == [f'backbone.layers.{name}' for name in
                                                  ('0.attn.qkv', '0.attn.proj', '1.ffn.layers.1')]


def test_a_running_training_is_reported_as_far_as_it_is(folder, report, tmp_path):
    running = tmp_path / 'running'
    running.mkdir()
    shutil.copy(folder / 'plain' / 'iter_2.pth', running)
    # MMEngine removes an old checkpoint before it writes the next: the note may name what is not there
    (running / 'last_checkpoint').write_text('/gone/iter_1.pth')
    got = report(running)
    assert got['runs'][0]['iteration'] == 2 and 'iteration 2 of 3' in got['printed']


def test_a_checkpoint_between_two_log_entries_is_one_more_record(folder, report, tmp_path):
    def forget(checkpoint):
        history = checkpoint['vvq_oscillation']['history']
        lists = [history[key] for key in ('iteration', 'share', 'flips', 'weight')] + list(history['layers'].values())
        for values in lists:
            values.clear()

    got = report(change(folder / 'plain', tmp_path / 'early', forget))['runs'][0]
    assert got['history']['iteration'] == [LAST] and got['history']['share'] == [got['all']['oscillating']]


def test_beside_an_average_the_trained_weights_are_read(folder, report, tmp_path):
    def swap(checkpoint):
        trained = checkpoint['state_dict']
        checkpoint['ema_state_dict'] = {f'module.{name}': value for name, value in trained.items()}
        checkpoint['state_dict'] = {name: torch.zeros_like(value) for name, value in trained.items()}

    averaged = report(change(folder / 'plain', tmp_path / 'averaged', swap))['runs'][0]
    assert averaged['layers'] == report(folder / 'plain')['runs'][0]['layers']


def test_runs_of_different_layers_are_compared_in_what_they_share(folder, report):
    rules = {**VIT_RULES, '*.1.ffn.*': 8}
    other = train(folder, folder / 'soft_labels', 'narrow', model=narrow_model(folder, rules))
    got = report(folder / 'plain', other)
    assert len(got['runs'][0]['layers']) == 6
    assert '2 layers are tracked in plain alone' in got['printed']


def narrow_model(folder, rules):
    model = qat_config(folder, folder / 'soft_labels').to_dict()['model']
    model['policy']['rules'] = rules
    return model


def no_statistics(checkpoint):
    del checkpoint['vvq_oscillation']


def no_scale(checkpoint):
    del checkpoint['state_dict'][f'{LAYER}.weight_quantizer.scale']


@pytest.mark.parametrize('edit, words', [(no_statistics, 'statistics of vvq_mm.OscillationHook in .*iter_3.pth'),
                                         (no_scale, f'no scale for {LAYER}')],
                         ids=['hook was off', 'no scale'])
def test_an_unfit_checkpoint_is_refused(folder, report, tmp_path, edit, words):
    with pytest.raises(CheckpointError, match=words):
        report(change(folder / 'plain', tmp_path / 'unfit', edit))


def test_a_half_written_checkpoint_says_try_again(folder, report, tmp_path):
    (tmp_path / 'writing').mkdir()
    (tmp_path / 'writing' / 'iter_1.pth').write_bytes((folder / 'plain' / 'iter_1.pth').read_bytes()[:5000])
    with pytest.raises(CheckpointError, match='try again'):
        report(tmp_path / 'writing')


def test_no_folder_names_near_ones(folder, report):
    with pytest.raises(FileNotFoundError, match='near it .*: regularised'):
        report(folder / 'regularized')


def test_no_checkpoint_yet_is_said(report, tmp_path):
    (tmp_path / 'begun').mkdir()
    with pytest.raises(FileNotFoundError, match='expected a checkpoint in .*begun, there is none yet'):
        report(tmp_path / 'begun')


def test_a_glob_that_fits_nothing_names_near_layers(folder, report):
    with pytest.raises(QuantizationError, match=r"'\*.atn.qkv' in --layers .* nearest names are .*attn.qkv"):
        report(folder / 'plain', '--layers', '*.atn.qkv')


def test_runs_that_count_differently_are_not_compared(folder, report, tmp_path):
    def slower(checkpoint):
        checkpoint['meta']['cfg'] = checkpoint['meta']['cfg'].replace('momentum=0.1', 'momentum=0.2')

    with pytest.raises(QuantizationError, match="'momentum': 0.1.* in plain and .*0.2"):
        report(folder / 'plain', change(folder / 'plain', tmp_path / 'slower', slower))


@pytest.mark.slow
def test_a_bad_folder_ends_the_program_in_one_sentence(tmp_path):
    output = run_tool(sys.executable, TOOL, 'nowhere', cwd=tmp_path, expect=1)
    assert 'FileNotFoundError: expected the work folder of a training at nowhere' in output
    assert 'Traceback' not in output
