"""The accuracies a reader asks for: full precision, right after calibration, last and best."""
from contextlib import nullcontext
from typing import Dict, Optional

import torch
from mmengine.hooks import Hook

from vvq_mm.errors import QuantizationError
from vvq_mm.registry import HOOKS
from vvq_mm.surgery import iter_quantizers, quantizer_mode
from vvq_mm.utils.evaluate import Score, count, mean
from vvq_mm.utils.model import unwrap

KEY = 'accuracy_report'


@HOOKS.register_module()
class AccuracyReportHook(Hook):
    """Evaluates the starting point before the first step and prints a summary at the end.

    ``float`` is the model that was loaded, with every quantizer passing through; ``calibrated`` is the quantised model
    before any training. Both cost one validation pass; after a resume they are read from the checkpoint. ``last`` is
    the last validation, ``best`` the best one: chosen on the validation data, so ``last`` is the honest number.
    ``float_loss`` and ``calibrated_loss`` are the mean cross-entropy of the labels (of this process's images): a
    quantised model at ln(classes) starts from guessing. A checkpoint holds what was known when it was written, which is
    before the validation of its own epoch.

    Args:
        metric (str): the metric to compare. Defaults to ``accuracy/top1``.
    """

    priority = 'LOW'  # after calibration

    def __init__(self, metric: str = 'accuracy/top1') -> None:
        self.metric = metric
        self.report: Dict[str, float] = {}

    def before_train(self, runner) -> None:
        if runner.val_loop is None or self.report or runner.iter:  # resumed: what training began with is gone
            return
        model = unwrap(runner.model)
        if not any(True for _ in iter_quantizers(model)):
            return
        self._evaluate(runner, 'float', quantizer_mode(model, 'float'))
        self._evaluate(runner, 'calibrated', nullcontext())
        losses = ', '.join(f'{self.report[key]:.3f}' for key in ('float_loss', 'calibrated_loss') if key in self.report)
        runner.logger.info(f'{self.metric} before training: {self.report["float"]:.2f} in full precision, '
                           f'{self.report["calibrated"]:.2f} quantised and calibrated'
                           f'{f"; cross-entropy of the labels {losses}" if losses else ""}.')

    def after_val_epoch(self, runner, metrics: Optional[Dict[str, float]] = None) -> None:
        value = (metrics or {}).get(self.metric)
        if value is not None:
            self.report['last'] = float(value)
            self.report['best'] = max(float(value), self.report.get('best', float('-inf')))

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint[KEY] = dict(self.report)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if runner._resume:
            self.report = dict(checkpoint.get(KEY, {}))

    def after_train(self, runner) -> None:
        if 'last' not in self.report:
            return
        words = dict(float='full precision', calibrated='calibrated, before training', last='last', best='best')
        line = ', '.join(f'{words[key]} {self.report[key]:.2f}' for key in words if key in self.report)
        runner.logger.info(f'{self.metric}: {line}. Checkpoints are in {runner.work_dir}.')

    @torch.no_grad()
    def _evaluate(self, runner, name: str, context) -> None:
        """Report metric and loss of the present model; no hooks run, so no checkpoint is taken for the best."""
        training = [module for module in runner.model.modules() if module.training]
        runner.model.eval()
        loop, counts = runner.val_loop, []
        with context:
            for data in loop.dataloader:
                samples = runner.model.val_step(data)
                counts.append(count(samples))
                loop.evaluator.process(data_samples=samples, data_batch=data)
        for module in training:
            module.training = True
        metrics = loop.evaluator.evaluate(len(loop.dataloader.dataset))
        if self.metric not in metrics:
            raise QuantizationError(f'expected the metric {self.metric!r} of AccuracyReportHook from val_evaluator, '
                                    f'got {", ".join(metrics)}; set metric= of the hook to one of these')
        self.report[name] = float(metrics[self.metric])
        total = Score(*map(sum, zip(*counts)))
        if total.images:
            self.report[f'{name}_loss'] = mean(total).loss
