"""Says at the start what a step, an epoch and the learning rate of this run mean."""
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper

from vvq_mm.registry import HOOKS


@HOOKS.register_module()
class TrainingSummaryHook(Hook):
    """Logs images and crops per step, steps per epoch and the learning rate, once.

    With M crops per image, a batch of B images holds B * M crops. An epoch is one pass over the images, in which each
    gives M crops. The learning rate belongs to an optimiser step and is taken as written in the config, whatever B and
    M are; with ``--auto-scale-lr`` MMEngine scales it by images per step over ``auto_scale_lr.base_batch_size``: crops
    of one image are not counted, since they are not independent samples.
    """

    priority = 'VERY_LOW'

    def before_train(self, runner) -> None:
        loader, loop = runner.train_dataloader, runner.train_loop
        crops = crops_per_image(loader.dataset)
        processes = get_world_size()
        accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        per_process = loader.batch_size or loader.batch_sampler.batch_size
        images = per_process * processes * accumulated
        rate = ', '.join(f'{value:.3g}' for value in _learning_rates(runner.optim_wrapper))
        runner.logger.info(
            f'A step: {images} images ({per_process} per process x {processes} process(es) x {accumulated} '
            f'accumulated), {images * crops} crops ({crops} per image). '
            f'An epoch: one pass over {len(loader.dataset)} images, {len(loader)} iterations; '
            f'the run: {loop.max_iters} iterations. '
            f'Learning rate {rate} per optimiser step, not scaled by the number of crops. Seed {runner.seed}.')


def crops_per_image(dataset) -> int:
    """Return ``num_crops`` of a data set or of the one it wraps, and 1 where there is none.

    >>> crops_per_image([1, 2, 3])
    1
    """
    while dataset is not None:
        if hasattr(dataset, 'num_crops'):
            return dataset.num_crops
        dataset = getattr(dataset, 'dataset', None)
    return 1


def _learning_rates(optim_wrapper) -> list:
    """Return the base learning rates, each once, without the factors of warm-up and parameter groups."""
    wrappers = [optim_wrapper] if isinstance(optim_wrapper, OptimWrapper) else list(optim_wrapper.values())
    return sorted({wrapper.optimizer.defaults['lr'] for wrapper in wrappers}, reverse=True)
