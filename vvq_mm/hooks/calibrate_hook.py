"""Calibration inside MMEngine's Runner."""
from itertools import islice
from typing import Iterator

import torch
from mmengine.hooks import Hook

from vvq_mm.calibration import calibrate
from vvq_mm.registry import HOOKS
from vvq_mm.utils.model import unwrap


@HOOKS.register_module()
class CalibrateHook(Hook):
    """Gives every quantizer without a scale its first one, before training, from training images.

    After a resume, or from a quantised checkpoint of the same policy, nothing is left to do. Each rank looks at its own
    images and the ranks exchange what they saw. The images are the first batches of the epoch that training starts
    with.

    Args:
        num_batches (int): training batches of this rank to look at. Defaults to 4.
    """

    priority = 'HIGH'

    def __init__(self, num_batches: int = 4) -> None:
        if num_batches < 1:
            raise ValueError(f'expected num_batches of at least 1, got {num_batches} for CalibrateHook')
        self.num_batches = num_batches

    def before_train(self, runner) -> None:
        model = unwrap(runner.model)
        count = calibrate(model, _images(model, runner.train_dataloader, self.num_batches))
        if count:
            runner.logger.info(f'Calibrated {count} quantizers on {self.num_batches} training batches per process.')


@torch.no_grad()
def _images(model, dataloader, num_batches: int) -> Iterator[torch.Tensor]:
    """Yield preprocessed images of the first batches, without augmentation of the batch."""
    for data in islice(iter(dataloader), num_batches):
        yield model.data_preprocessor(data, False)['inputs']
