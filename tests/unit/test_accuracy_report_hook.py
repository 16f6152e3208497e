"""The report of accuracies: what it measures before training, and when it does not."""
from types import SimpleNamespace

import pytest
import torch
from helpers import calibrated, tiny_qat
from mmengine.logging import MMLogger
from mmpretrain.structures import DataSample
from torch.utils.data import DataLoader

from vvq_mm.errors import QuantizationError
from vvq_mm.hooks import AccuracyReportHook
from vvq_mm.surgery import iter_quantizers


class Evaluator:
    """Says in which mode the model was: 50 for float, 25 for quantised."""

    def __init__(self, model, metric='accuracy/top1'):
        self.model, self.metric, self.seen = model, metric, None

    def process(self, data_samples, data_batch):
        self.seen = next(iter_quantizers(self.model))[3].mode

    def evaluate(self, size):
        return {self.metric: 50.0 if self.seen == 'float' else 25.0}


def runner(metric='accuracy/top1', iteration=0):
    model = calibrated(tiny_qat())
    model.val_step = lambda data: data
    loop = SimpleNamespace(dataloader=DataLoader([0]), evaluator=Evaluator(model, metric))
    return SimpleNamespace(model=model, val_loop=loop, iter=iteration, logger=MMLogger.get_instance('test'))


def test_float_and_calibrated_are_measured_before_training():
    hook = AccuracyReportHook()
    hook.before_train(runner())
    assert hook.report == dict(float=50.0, calibrated=25.0)


def test_the_loss_of_the_labels_is_reported_where_there_are_probabilities():
    run = runner()
    sample = DataSample().set_pred_score(torch.tensor([0.5, 0.5])).set_gt_label(1)
    run.model.val_step = lambda data: [sample]
    hook = AccuracyReportHook()
    hook.before_train(run)
    assert hook.report['float_loss'] == hook.report['calibrated_loss'] == pytest.approx(0.6931, abs=1e-4)


def test_a_resumed_run_without_a_report_measures_nothing_now():
    """What it began with is gone; the weights of today are another model."""
    hook = AccuracyReportHook()
    hook.before_train(runner(iteration=7))
    assert hook.report == {}


def test_a_metric_that_the_evaluator_does_not_give_is_named():
    with pytest.raises(QuantizationError, match="'accuracy/top1' of AccuracyReportHook.*got multi-label/mAP"):
        AccuracyReportHook().before_train(runner(metric='multi-label/mAP'))


def test_training_flags_are_restored():
    run = runner()
    run.model.train()
    AccuracyReportHook().before_train(run)
    assert all(module.training for module in run.model.modules())


def test_the_best_is_kept_and_the_last_is_the_last():
    hook = AccuracyReportHook()
    for value in (70.0, 80.0, 75.0):
        hook.after_val_epoch(None, {'accuracy/top1': value})
    assert hook.report == dict(last=75.0, best=80.0)
