"""The hook that stops a run whose loss or scales are no longer finite."""
from typing import List, Optional

import torch
from mmengine.hooks import Hook
from torch import Tensor

from vvq_mm.errors import TrainingDiverged
from vvq_mm.registry import HOOKS
from vvq_mm.surgery import iter_quantizers
from vvq_mm.utils.model import unwrap

NEVER = -1


@HOOKS.register_module()
class CheckFiniteHook(Hook):
    """Raises :class:`TrainingDiverged` with the iteration of the first bad loss and the layer whose scale broke first.

    After every iteration it notes on the device which of loss and scales are finite; it reads the notes, and so waits
    for the device, every ``interval`` iterations, after each epoch, and before a checkpoint is saved: none is saved of
    a broken model.

    Args:
        interval (int): iterations between two reads. Defaults to 10.
    """

    priority = 'HIGH'

    def __init__(self, interval: int = 10) -> None:
        if not isinstance(interval, int) or interval < 1:
            raise ValueError('expected interval to be a positive number of iterations in CheckFiniteHook, got '
                             f'{interval!r}')
        self.interval = interval
        self.slots: Optional[List[tuple]] = None

    def before_train(self, runner) -> None:
        model = unwrap(runner.model)
        self.slots = [(f'{name} ({slot})', quantizer.scale) for name, _, slot, quantizer in iter_quantizers(model)]
        device = next(model.parameters()).device
        self.bad_scale = torch.full((sum(scale.numel() for _, scale in self.slots), ), NEVER, device=device)
        self.bad_loss = torch.tensor(NEVER, device=device)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        done = runner.iter + 1
        if self.slots:
            scales = torch.cat([scale.detach().flatten() for _, scale in self.slots])
            self.bad_scale = _note(self.bad_scale, scales, done)
        if isinstance(outputs, dict) and 'loss' in outputs:
            loss = torch.as_tensor(outputs['loss'], device=self.bad_loss.device).detach().float().mean()
            self.bad_loss = _note(self.bad_loss, loss, done)
        if self.every_n_train_iters(runner, self.interval):
            self._read()

    def after_train_epoch(self, runner) -> None:
        self._read()

    def after_train(self, runner) -> None:
        self._read()

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self.slots is not None:
            self._read()

    def _read(self) -> None:
        """Wait for the device and raise if anything was noted."""
        *bad_scale, bad_loss = torch.cat([self.bad_scale, self.bad_loss.view(1)]).tolist()
        first = min((done for done in [*bad_scale, bad_loss] if done != NEVER), default=None)
        if first is None:
            return
        owners = [name for name, scale in self.slots for _ in range(scale.numel())]
        bad = [(done, name) for done, name in zip(bad_scale, owners) if done != NEVER]
        if bad:
            done, name = min(bad, key=lambda item: item[0])
            others = len({name for _, name in bad}) - 1
            since = f' ({others} more at once or later)' if others else ''
            scales = f'the first scale to go bad is that of {name}, after iteration {done}{since}'
        else:
            scales = 'all scales were finite: the weights, the images or the labels are not'
        loss = f'the loss was NaN or infinite in iteration {bad_loss}'
        if bad_loss == NEVER:
            loss = 'the loss was still finite'
        raise TrainingDiverged(f'expected finite loss and scales, got otherwise in iteration {first}: {loss}; {scales}'
                               ". Lower the learning rate or the scales' lr_mult in paramwise_cfg, add clip_grad to "
                               'optim_wrapper, or check the data of that iteration; no checkpoint was saved of this '
                               'state')


def _note(first: Tensor, values: Tensor, done: int) -> Tensor:
    """Return ``first`` with ``done`` where ``values`` is not finite and nothing was noted before."""
    return torch.where(~torch.isfinite(values) & (first == NEVER), done, first)
