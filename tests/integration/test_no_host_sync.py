"""A training step never waits for the device: nothing in it reads a value back to Python."""
import pytest
import torch
from helpers import build
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmpretrain.structures import DataSample
from shipped import CONFIGS
from torch.profiler import ProfilerActivity, profile

import vvq_mm
from vvq_mm.layers import product
from vvq_mm.losses import BinRegularizer
from vvq_mm.oscillation import OscillationTracker
from vvq_mm.weight_layers import select_weights

# what reads a value from the device, or makes a shape that hangs on values
SYNCHRONISING = ('aten::item', 'aten::_local_scalar_dense', 'aten::nonzero', 'aten::is_nonzero', 'aten::equal',
                 'aten::masked_select', 'aten::_unique2', 'aten::bincount', 'aten::allclose')


class Training:
    """The digits recipe after calibration: its optimizer, the regulariser at work and the tracker after each step."""

    def __init__(self, matmul='float'):
        config = Config.fromfile(CONFIGS / 'digits' / 'vit_w4a4.py')
        config.model.update(data_preprocessor=config.data_preprocessor)
        config.model.policy.matmul = matmul
        config.optim_wrapper.optimizer.fused = True
        self.model = build(config.model)
        self.model.train()
        self.data = dict(inputs=torch.randint(0, 255, (4, 1, 32, 32)), data_samples=[_sample(i) for i in range(4)])
        vvq_mm.calibrate(self.model, [torch.randn(4, 1, 32, 32)])
        self.model.regularizer = BinRegularizer()
        self.optim_wrapper = build_optim_wrapper(self.model, config.optim_wrapper)
        self.tracker = OscillationTracker(select_weights(self.model, max_bits=4))
        self.tracker.start()
        self.step()  # the first step makes buffers and looks at the labels

    def step(self):
        self.model.regularizer.set_weight(0.01)
        losses = self.model.train_step(self.data, self.optim_wrapper)
        self.tracker.update()
        return losses


def _sample(index):
    sample = DataSample().set_gt_label(index)
    sample.set_field(torch.tensor([[1., 2., 3.], [0.5, 0.3, 0.1]]), 'soft_label')
    return sample


def synchronising(function):
    """Return the names of the operators in ``function`` that wait for the device."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        function()
    events = profiler.events()
    assert any(event.name.startswith('aten::') for event in events), 'the profiler saw nothing'
    found = [event for event in events if event.name in SYNCHRONISING and not _inside_fused_optimizer(event)]
    return sorted({event.name for event in found})


def _inside_fused_optimizer(event):
    """Return whether this is the optimizer's CPU kernel looking at its own step counter; on CUDA it need not."""
    while event is not None:
        if event.name == 'aten::_fused_adamw_':
            return True
        event = event.cpu_parent
    return False


@pytest.fixture(autouse=True)
def any_device_multiplies_integers(monkeypatch):
    monkeypatch.setattr(product, 'device_obstacle', lambda device: '')


@pytest.mark.parametrize('matmul', ['float', 'int8'])
def test_a_training_step_reads_nothing_back(matmul):
    training = Training(matmul)
    losses = []
    assert synchronising(lambda: losses.append(training.step())) == []
    assert {'loss_kd', 'loss_bin'} <= losses[0].keys(), 'the regulariser was at work'


@pytest.mark.parametrize('spoil', [lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x[x > 0]],
                         ids=['item', 'branch', 'mask'])
def test_the_check_notices_a_value_that_is_read_back(spoil):
    """In one layer of the model, in the middle of a step."""

    def hook(module, args, output):
        spoil(output)

    training = Training()
    training.model.backbone.ln1.register_forward_hook(hook)
    assert synchronising(training.step)


def test_the_check_notices_an_optimizer_that_reads_back():
    """AdamW without ``fused=True`` asks each of its step counters for its value."""
    training = Training()
    for group in training.optim_wrapper.param_groups:
        group['fused'] = False
    assert synchronising(training.step)


@pytest.mark.parametrize('freezing', [False, True], ids=['counting', 'freezing'])
def test_tracking_and_freezing_read_nothing_back(freezing):
    training = Training()
    tracker = OscillationTracker(select_weights(training.model, max_bits=4), freezing=freezing)
    tracker.start()

    def look():
        tracker.update()
        if freezing:
            tracker.freeze_above(0.01)

    assert synchronising(look) == []
