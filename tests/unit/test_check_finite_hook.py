"""CheckFiniteHook: what is noted, when it is read, and what it says."""
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vvq_mm import calibrate, quantize_
from vvq_mm.errors import TrainingDiverged
from vvq_mm.hooks.check_finite_hook import CheckFiniteHook

NAN = float('nan')


class Training:
    """Stands for a Runner: one call per iteration, and breaks what the test says."""

    def __init__(self, interval=10, **weight):
        self.model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
        quantize_(self.model, dict(type='RulePolicy', weight=dict(type='LSQQuantizer', bits=4, **weight), act=None))
        calibrate(self.model, [torch.randn(2, 4)])
        self.hook, self.iter = CheckFiniteHook(interval), 0
        self.hook.before_train(self)

    def step(self, loss=1.0, times=1):
        for _ in range(times):
            self.hook.after_train_iter(self, 0, outputs=dict(loss=torch.tensor(loss)))
            self.iter += 1

    def break_scale(self, index, group=0):
        with torch.no_grad():
            self.model[index].weight_quantizer.scale[group] = NAN


def test_a_finite_run_passes():
    training = Training()
    training.step(times=30)
    training.hook.before_save_checkpoint(training, {})
    training.hook.after_train_epoch(training)
    training.hook.after_train(training)


@pytest.mark.parametrize('loss', [NAN, float('inf'), -float('inf')])
def test_the_first_bad_loss_is_named_at_the_next_read(loss):
    training = Training()
    training.step(times=2)
    training.step(loss)
    training.step(NAN, times=6)
    with pytest.raises(TrainingDiverged, match='NaN or infinite in iteration 3; all scales were finite') as error:
        training.step()
    assert 'learning rate' in str(error.value)


def test_the_layer_whose_scale_went_bad_first_is_named():
    training = Training()
    training.step(times=2)
    training.break_scale(1)
    training.step()
    training.break_scale(0)
    training.step(NAN, times=6)
    with pytest.raises(TrainingDiverged, match=r'iteration 3: the loss was NaN or infinite in iteration 4; '
                       r'.* 1 \(weight\), after iteration 3 \(1 more'):
        training.step(NAN)


def test_one_bad_scale_of_many_is_enough():
    training = Training(granularity='channel')
    training.break_scale(0, group=5)
    training.step(times=3)
    with pytest.raises(TrainingDiverged, match=r'the loss was still finite; .* 0 \(weight\)'):
        training.hook.after_train(training)


@pytest.mark.parametrize('moment', ['after_train_epoch', 'after_train'])
def test_the_end_of_an_epoch_and_of_training_read_too(moment):
    training = Training()
    training.step(NAN)
    with pytest.raises(TrainingDiverged):
        getattr(training.hook, moment)(training)


def test_no_checkpoint_is_saved_of_a_broken_model():
    training = Training(interval=1000)
    training.step(NAN)
    with pytest.raises(TrainingDiverged, match='no checkpoint was saved'):
        training.hook.before_save_checkpoint(training, {})


def test_nothing_is_read_between_intervals():
    training = Training(interval=10)
    training.hook._read = lambda: pytest.fail('waited for the device')
    training.step(NAN, times=9)


def test_a_float_model_and_a_loop_without_loss_pass():
    hook, runner = CheckFiniteHook(1), SimpleNamespace(model=nn.Linear(2, 2), iter=0)
    hook.before_train(runner)
    hook.after_train_iter(runner, 0, outputs=None)


def test_saving_outside_training_passes():
    CheckFiniteHook().before_save_checkpoint(None, {})


@pytest.mark.parametrize('interval', [0, 1.5])
def test_a_wrong_interval_is_named(interval):
    with pytest.raises(ValueError, match=f'got {interval}'):
        CheckFiniteHook(interval)
