"""A stopped and resumed quantised run ends with the bits of an uninterrupted one: weights, optimizer, statistics."""
import shutil

import pytest
import tool_runs
import torch
from qat_config import make_digit_labels, qat_config, qat_hooks
from runner_config import ITERS_PER_EPOCH, run

from vvq_mm import iter_quantizers
from vvq_mm.errors import CheckpointError
from vvq_mm.quantizers import Quantizer

EPOCHS = 2
LAST = EPOCHS * ITERS_PER_EPOCH
FREEZE = 0.05  # of a momentum of 0.1: a weight that has turned back once is frozen
OF_THE_RUN = ('time', 'experiment_name', 'cfg', 'mmengine_version')  # these differ between any two runs


@pytest.fixture(scope='module')
def labels(tmp_path_factory):
    return make_digit_labels(tmp_path_factory.mktemp('labels'))


@pytest.fixture(scope='module', params=[None, FREEZE], ids=['free', 'freezing'])
def uninterrupted(request, labels, tmp_path_factory):
    """The work folder of a whole run, its Runner, and a function that makes the config of the same run elsewhere."""
    folder = tmp_path_factory.mktemp('whole')

    def config(work_dir, **top_level):
        return qat_config(work_dir, labels, hooks=qat_hooks(freeze=request.param), **top_level)

    return folder, run(config(folder), f'whole_{request.param}'), config


def saved(folder, iteration):
    return torch.load(folder / f'iter_{iteration}.pth', weights_only=True)


def leaves(value, name=''):
    """Yield (place, tensor or builtin) of everything in a checkpoint that another run must repeat."""
    if isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if not (name in ('/meta', '/message_hub/runtime_info') and key in OF_THE_RUN) and 'time' not in str(key):
                yield from leaves(item, f'{name}/{key}')
    else:
        yield name, value


def differences(got, expected):
    got, expected = dict(leaves(got)), dict(leaves(expected))
    assert got.keys() == expected.keys()

    def same(a, b):
        return torch.equal(a.nan_to_num(-99.), b.nan_to_num(-99.)) if isinstance(a, torch.Tensor) else a == b

    return [name for name in expected if not same(got[name], expected[name])]


def test_the_run_has_something_to_lose(uninterrupted):
    """Otherwise the tests below could not fail."""
    folder, runner, _ = uninterrupted
    end, statistics = saved(folder, LAST), saved(folder, LAST)['vvq_oscillation']
    assert {'state_dict', 'optimizer', 'param_schedulers', 'accuracy_report', 'message_hub'} <= end.keys()
    assert max(state['frequency'].max() for state in statistics['layers'].values()) > 0
    assert all(state['direction'].abs().max() == 1 for state in statistics['layers'].values())
    assert len(statistics['history']['iteration']) == LAST and max(statistics['history']['flips']) > 0
    assert runner.model.regularizer.active and len(set(statistics['history']['weight'])) > 3
    frozen = [name for name, value in end['state_dict'].items() if name.endswith('frozen') and (~value.isnan()).any()]
    assert bool(frozen) == ('mean_codes' in next(iter(statistics['layers'].values())))


@pytest.mark.parametrize('stop', [1, ITERS_PER_EPOCH, LAST - 1], ids=['mid_epoch', 'end_of_epoch', 'before_the_end'])
def test_resume_repeats_the_whole_checkpoint(uninterrupted, tmp_path, stop):
    folder, whole, config = uninterrupted
    resumed = run(config(tmp_path, resume=True, load_from=str(folder / f'iter_{stop}.pth')), f'resumed_{tmp_path.name}')
    assert not differences(saved(tmp_path, LAST), saved(folder, LAST))
    assert torch.equal(resumed.model.regularizer.weight, whole.model.regularizer.weight)


def test_the_checkpoint_on_the_way_is_repeated_too(uninterrupted, tmp_path):
    folder, _, config = uninterrupted
    run(config(tmp_path, resume=True, load_from=str(folder / 'iter_1.pth')), f'way_{tmp_path.name}')
    assert not differences(saved(tmp_path, ITERS_PER_EPOCH + 1), saved(folder, ITERS_PER_EPOCH + 1))


def test_nothing_is_calibrated_or_evaluated_anew_on_resume(uninterrupted, tmp_path, monkeypatch):
    folder, _, config = uninterrupted
    monkeypatch.setattr(Quantizer, 'initialise', lambda *_: pytest.fail('a scale was initialised'))
    monkeypatch.setattr('vvq_mm.hooks.AccuracyReportHook._evaluate', lambda *_: pytest.fail('the start was evaluated'))
    run(config(tmp_path, resume=True, load_from=str(folder / f'iter_{LAST - 1}.pth')), f'calibrated_{tmp_path.name}')


@pytest.mark.slow
@pytest.mark.parametrize('uninterrupted', [FREEZE], indirect=True, ids=['freezing'])
def test_the_tool_resumes_from_the_last_checkpoint_to_the_same_bits(uninterrupted, tmp_path):
    folder, _, config = uninterrupted
    config('work', log_level='INFO').dump(str(tmp_path / 'config.py'))
    (tmp_path / 'work').mkdir()
    shutil.copy(folder / 'iter_2.pth', tmp_path / 'work' / 'iter_2.pth')
    (tmp_path / 'work' / 'last_checkpoint').write_text('work/iter_2.pth')
    output = tool_runs.train('config.py', '--resume', cwd=tmp_path)
    assert 'resumed epoch: 0, iter: 2' in output and 'Calibrated' not in output
    assert not differences(saved(tmp_path / 'work', LAST), saved(folder, LAST))


@pytest.fixture(scope='module')
def four_bits(labels, tmp_path_factory):
    """The Runner of a short W4A4 run; its last checkpoint is iter_3.pth."""
    return run(qat_config(tmp_path_factory.mktemp('w4'), labels, bits=4, epochs=1), 'w4')


def test_weights_of_another_width_load_and_their_scales_are_calibrated_anew(labels, four_bits, tmp_path):
    config = qat_config(tmp_path, labels, bits=2, epochs=1, load_from=f'{four_bits.work_dir}/iter_3.pth')
    config.optim_wrapper.optimizer.lr = 0.0
    runner = run(config, 'w2')
    got, expected = runner.model.state_dict(), four_bits.model.state_dict()
    assert not [name for name in expected if '_quantizer' not in name and not torch.equal(got[name], expected[name])]
    changed = [quantizer for *_, quantizer in iter_quantizers(runner.model) if quantizer.bits == 2]
    assert len(changed) == 24 and all(quantizer.ready and quantizer.loaded_grid.bits == 4 for quantizer in changed)
    kept = [name for name in expected if name.startswith('head') and name.endswith('.scale')]
    assert len(kept) == 2 and all(torch.equal(got[name], expected[name]) for name in kept)
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'other bit widths (4 -> 2): the scales of 24 quantizers are dropped and will be calibrated' in log


def test_a_checkpoint_of_another_width_cannot_be_resumed(labels, four_bits, tmp_path):
    config = qat_config(tmp_path, labels, bits=2, resume=True, load_from=f'{four_bits.work_dir}/iter_2.pth')
    with pytest.raises(CheckpointError, match='iter_2.pth to fit .* no scale of these bits for the quantizers'):
        run(config, 'w2_resumed')
