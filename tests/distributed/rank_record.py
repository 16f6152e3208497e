"""A hook for the distributed tests: each process writes down what it holds, which must be the same everywhere."""
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook

from vvq_mm import iter_quantizers
from vvq_mm.registry import HOOKS


@HOOKS.register_module()
class RankRecordHook(Hook):
    """Saves the scales after calibration, a batch, and the model at the end as ``WHAT_RANK.pth`` in the work folder."""

    priority = 'NORMAL'  # after CalibrateHook and OscillationHook

    def before_train(self, runner) -> None:
        quantizers = iter_quantizers(runner.model.module)
        self._save(runner, 'calibrated', {f'{name} {slot}': quantizer.scale for name, _, slot, quantizer in quantizers})

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self._save(runner, f'images_{runner.iter + 1}', dict(inputs=torch.stack(list(data_batch['inputs']))))

    def after_train(self, runner) -> None:
        self._save(runner, 'end', runner.model.module.state_dict())

    def _save(self, runner, what: str, tensors: dict) -> None:
        path = Path(runner.work_dir) / f'{what}_{get_rank()}.pth'
        torch.save({name: value.detach() for name, value in tensors.items()}, path)
