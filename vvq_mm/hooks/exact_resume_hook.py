"""A run that is stopped and resumed ends with the weights of one that was not."""
import random

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop

from vvq_mm.functional.seeding import hash64
from vvq_mm.registry import HOOKS

_DATA, _STEP = 0, 1


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Makes all that is random a function of (seed, rank, iteration), and continues an epoch where it was left.

    No random state is saved: it is set anew before each iteration, once for the step (drop path, for example) and once
    for the loading of the next batch in the same process (``num_workers=0``). In worker processes the random choices
    must come from the index that the sampler gives, as ``vvq_mm.MultiCropDataset`` makes them. A checkpoint saved in
    the middle of an epoch (``CheckpointHook(by_epoch=False)``) needs ``vvq_mm.ResumableSampler`` to go on with the
    next batch of that epoch; an iteration-based loop skips what it has seen by itself. With gradient accumulation,
    save at a multiple of its count.
    """

    priority = 'VERY_HIGH'  # before hooks that draw or load anything

    def before_train(self, runner) -> None:
        self._start = 0
        sampler, seed = _sampler(runner), runner.seed
        changed = getattr(sampler, 'seed', seed) != seed  # a resumed run takes over the checkpoint's seed
        if changed:
            sampler.seed = seed
        _set_seed(seed, runner.iter, _DATA)
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            if changed:  # its iterator is older than the new seed
                loop = runner.train_loop
                loop.dataloader_iterator = type(loop.dataloader_iterator)(loop.dataloader)
            return
        batches_done = runner.iter - runner.epoch * len(runner.train_dataloader)
        if batches_done > 0:
            self._start = batches_done * _batch_size(runner.train_dataloader)
        if self._start and not hasattr(sampler, 'start'):
            runner.logger.warning(
                f'Resuming in the middle of an epoch is not exact: {type(sampler).__name__} starts the epoch again. '
                "Use `train_dataloader=dict(sampler=dict(type='vvq_mm.ResumableSampler'))`.")

    def before_train_epoch(self, runner) -> None:
        sampler = _sampler(runner)
        if hasattr(sampler, 'start'):
            sampler.start = self._start
        self._start = 0
        _set_seed(runner.seed, runner.iter, _DATA)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        _set_seed(runner.seed, runner.iter, _STEP)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        _set_seed(runner.seed, runner.iter + 1, _DATA)


def _set_seed(seed: int, iteration: int, purpose: int) -> None:
    mixed = int(hash64(seed, get_rank(), iteration, purpose)[0])
    random.seed(mixed)
    np.random.seed(mixed % 2**32)
    torch.manual_seed(mixed)


def _sampler(runner):
    dataloader = runner.train_dataloader
    return getattr(dataloader.batch_sampler, 'sampler', dataloader.sampler)


def _batch_size(dataloader) -> int:
    return dataloader.batch_size or dataloader.batch_sampler.batch_size
