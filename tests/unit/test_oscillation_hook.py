"""OscillationHook in MMEngine's real Runner, on a model of two linear layers."""
import copy

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from vvq_mm import quantize_
from vvq_mm.calibration import calibrate
from vvq_mm.errors import CheckpointError, QuantizationError, QuantizerNotReady
from vvq_mm.functional.oscillation import init_state, update_
from vvq_mm.hooks.oscillation_hook import OscillationHook
from vvq_mm.hooks.safe_checkpoint_hook import SafeCheckpointHook
from vvq_mm.losses import BinRegularizer

COSINE = dict(type='CosineSchedule', start=0., end=0.1, begin=0.25)
BIN = dict(type='vvq_mm.BinRegularizer', weight=COSINE)


class Noise(Dataset):
    """Samples that are a function of their index; one pass lasts a whole run, since MMEngine sleeps between two."""

    def __len__(self):
        return 48

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return torch.randn(6, generator=generator), torch.randint(3, (), generator=generator)


class TinyModel(BaseModel):
    """Two quantised layers; takes a regulariser as QATImageClassifier does."""

    def __init__(self, bits=2, calibrated=True):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        quantize_(self, dict(type='RulePolicy', weight=dict(type='LSQQuantizer', bits=bits), act=None))
        self.regularizer = None
        self.regularizer_weights = []
        if calibrated:
            calibrate(self, [], forward=lambda x: None)

    def forward(self, inputs, labels, mode='tensor'):
        logits = self.second(self.first(inputs).relu())
        losses = dict(loss_ce=nn.functional.cross_entropy(logits, labels))
        if self.regularizer is not None:
            self.regularizer_weights.append(self.regularizer.weight.item())
            if self.regularizer.active:
                losses[self.regularizer.loss_name] = self.regularizer(self)
        return losses


def codes_of(model):
    layers = dict(first=model.first, second=model.second)
    return {name: layer.weight_quantizer.codes(layer.weight) for name, layer in layers.items()}


class Recorder(Hook):
    """Keeps the codes after every step, and can stop the run as a crash would."""
    priority = 'LOWEST'

    def __init__(self, stop_at=None):
        self.stop_at, self.codes = stop_at, []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.codes.append(codes_of(runner.model))
        if runner.iter + 1 == self.stop_at:
            raise KeyboardInterrupt


def make_runner(work_dir, hook, model=None, iterations=12, lr=0.05, **options):
    hooks = [hook, SafeCheckpointHook(), *options.pop('hooks', [])]
    return Runner(
        model=model or TinyModel(), work_dir=str(work_dir), experiment_name=f'{work_dir.name}-{id(hook)}',
        custom_hooks=hooks,
        train_dataloader=dict(dataset=Noise(), batch_size=4, num_workers=0, collate_fn=dict(type='default_collate'),
                              sampler=dict(type='DefaultSampler', shuffle=False)),
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=lr, momentum=0.9)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=5),
                           logger=dict(type='LoggerHook', interval=4)),
        default_scope='mmengine', randomness=dict(seed=0), log_level='WARNING', **options)


def run(work_dir, hook=None, **options):
    hook = hook or OscillationHook(log_interval=4, plot=False)
    runner = make_runner(work_dir, hook, **options)
    runner.train()
    return runner, hook


def test_statistics_equal_a_replay_of_the_codes(tmp_path):
    recorder, model = Recorder(), TinyModel()
    start = codes_of(model)
    _, hook = run(tmp_path, model=model, hooks=[recorder])
    assert hook.tracker.history['iteration'] == [4, 8, 12]
    for name, codes in start.items():
        state = init_state(codes)
        moved = sum(update_(state, step[name], 0.01).item() for step in recorder.codes)
        assert moved > 0, 'nothing moved, the test shows nothing'
        torch.testing.assert_close(hook.tracker.states[name].frequency, state.frequency)


def test_history_is_the_share_above_the_threshold(tmp_path):
    _, hook = run(tmp_path, OscillationHook(log_interval=5, plot=False, threshold=0.0), lr=0.5)
    history, states = hook.tracker.history, hook.tracker.states
    above = {name: (state.frequency > 0).sum().item() for name, state in states.items()}
    assert history['iteration'] == [5, 10, 12]
    assert history['layers']['first'][-1] == above['first'] / 48
    assert history['layers']['second'][-1] == above['second'] / 24
    assert history['share'][-1] == sum(above.values()) / 72 > 0


def test_share_and_weight_reach_the_log_and_layers_the_visualizer(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    backends = [dict(type='TensorboardVisBackend'), dict(type='LocalVisBackend')]
    runner, hook = run(tmp_path, OscillationHook(log_interval=4, plot=False, regularizer=BIN),
                       visualizer=dict(type='Visualizer', vis_backends=backends))
    runner.visualizer.close()
    events = EventAccumulator(str(next(tmp_path.rglob('events.out*')).parent)).Reload()
    tags = {'oscillation/first', 'oscillation/second', 'oscillating', 'bin_weight', 'loss_bin'}
    assert tags <= set(events.Tags()['scalars'])
    first, history = events.Scalars('oscillation/first'), hook.tracker.history
    assert [event.step for event in first] == [4, 8, 12]
    assert [event.value for event in first] == pytest.approx(history['layers']['first'])
    assert [event.value for event in events.Scalars('bin_weight')] == pytest.approx(history['weight'])


def test_regularizer_weight_is_the_schedule_of_the_progress(tmp_path):
    runner, hook = run(tmp_path, OscillationHook(plot=False, regularizer=BIN))
    expected = [hook.weight_schedule(i / 12) for i in range(12)]
    assert runner.model.regularizer_weights == pytest.approx(expected)
    assert expected[0] == 0 < expected[-1]


def test_regularizer_takes_the_hooks_layers_unless_it_names_its_own():
    hook = OscillationHook(max_bits=3, layers=['a'], regularizer=BIN)
    own = OscillationHook(max_bits=3, layers=['a'], regularizer=dict(BIN, max_bits=8, layers=['b']))
    assert (hook.regularizer.max_bits, hook.regularizer.layers) == (3, ['a'])
    assert (own.regularizer.max_bits, own.regularizer.layers) == (8, ['b'])


def test_config_of_the_regularizer_is_not_changed():
    config = copy.deepcopy(BIN)
    OscillationHook(regularizer=config)
    assert config == BIN


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path):
    def hook():
        return OscillationHook(log_interval=4, plot=False, freeze=0.009, regularizer=BIN)

    whole, whole_hook = run(tmp_path / 'whole', hook(), lr=0.5)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / 'half', hook(), lr=0.5, hooks=[Recorder(stop_at=7)])
    resumed, resumed_hook = run(tmp_path / 'half', hook(), lr=0.5, resume=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(99), resumed.model.state_dict()[name].nan_to_num(99)), name
    assert whole_hook.tracker.history == resumed_hook.tracker.history
    for name, state in whole_hook.tracker.states.items():
        for key, tensor in state.to_dict().items():
            assert torch.equal(tensor, resumed_hook.tracker.states[name].to_dict()[key]), (name, key)
    assert whole_hook.tracker.frozen_share() > 0, 'nothing was frozen, the test shows less than it says'


def test_checkpoint_holds_tensors_and_builtins_alone(tmp_path):
    run(tmp_path)
    saved = torch.load(tmp_path / 'iter_10.pth', weights_only=True)['vvq_oscillation']
    assert saved['layers'].keys() == {'first', 'second'} and saved['history']['iteration'] == [4, 8]


def test_statistics_of_other_layers_are_refused(tmp_path):
    run(tmp_path, iterations=5)
    with pytest.raises(CheckpointError, match=r'the 1 tracked layers.*second is not tracked here and \(3, 8\) there'):
        run(tmp_path, OscillationHook(layers=['first']), resume=True)


def test_load_from_starts_with_empty_statistics(tmp_path):
    run(tmp_path / 'a', iterations=5)
    _, hook = run(tmp_path / 'b', iterations=4, load_from=str(tmp_path / 'a' / 'iter_5.pth'))
    assert hook.tracker.history['iteration'] == [4]


def test_frozen_weights_stop_moving(tmp_path):
    recorder = Recorder()
    runner, hook = run(tmp_path, OscillationHook(plot=False, freeze=0.0), lr=0.5, hooks=[recorder])
    frozen = ~runner.model.first.weight_quantizer.frozen.isnan()
    assert frozen.any()
    state = hook.tracker.states['first']
    assert torch.equal(state.codes[frozen].half(), runner.model.first.weight_quantizer.frozen[frozen])


def test_freezing_works_beside_an_ema_copy_of_the_model(tmp_path):
    ema = dict(type='EMAHook')
    runner, _ = run(tmp_path, OscillationHook(plot=False, freeze=0.0, regularizer=BIN), lr=0.5, hooks=[ema])
    averaged = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook').ema_model.module
    source = runner.model.first.weight_quantizer.frozen
    assert torch.equal(averaged.first.weight_quantizer.frozen.isnan(), source.isnan()) and not source.isnan().all()


def test_pictures_are_written_after_training(tmp_path):
    run(tmp_path, OscillationHook(log_interval=4, regularizer=BIN))
    assert sorted(path.name for path in (tmp_path / 'oscillation').iterdir()) == ['latent_weights.png', 'share.png']


def test_drawn_layers_are_chosen_by_glob(tmp_path):
    _, hook = run(tmp_path, OscillationHook(plot=False, histogram_layers=['sec*']), iterations=1)
    assert [layer.name for layer in hook.drawn] == ['second']


def test_an_uncalibrated_model_is_refused(tmp_path):
    with pytest.raises(QuantizerNotReady, match='first.*CalibrateHook'):
        run(tmp_path, model=TinyModel(calibrated=False))


def test_a_model_that_takes_no_regularizer_is_refused(tmp_path):
    model = TinyModel()
    del model.regularizer
    with pytest.raises(QuantizationError, match='TinyModel'):
        run(tmp_path, OscillationHook(regularizer=BIN), model=model)


def test_a_second_regularizer_is_refused(tmp_path):
    model = TinyModel()
    model.regularizer = BinRegularizer()
    with pytest.raises(QuantizationError, match='without one of its own'):
        run(tmp_path, OscillationHook(regularizer=BIN), model=model)


@pytest.mark.parametrize('options, words', [
    (dict(momentum=0), 'momentum in .0, 1.'),
    (dict(interval=0), 'interval to be a positive'),
    (dict(log_interval=2.5), 'log_interval'),
    (dict(regularizer=dict(type='vvq_mm.BinRegularizer')), 'expected `weight`'),
    (dict(freeze='often'), 'finite number'),
], ids=['momentum', 'interval', 'log_interval', 'regularizer weight', 'freeze'])
def test_a_wrong_option_is_named(options, words):
    with pytest.raises(QuantizationError, match=words):
        OscillationHook(**options)
