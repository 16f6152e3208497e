"""A config's model on a few images of its own: quantised by any plan, calibrated, scored; no training."""
import copy
from typing import Optional

import torch
from mmengine.config import Config

from vvq_mm.calibration import calibrate
from vvq_mm.errors import QuantizationError
from vvq_mm.layers import SlotMixin
from vvq_mm.policy import QuantPlan
from vvq_mm.surgery import apply_plan, iter_quantizers, unquantize_

from .evaluate import Score, build_batches, build_model, calibration_images, evaluate


class Trial:
    """Holds the calibrated model, its images for calibration and for evaluation, and the plan of its config.

    Calibration looks at training images, prepared as for validation and spread evenly over the training data.

    Args:
        cfg (Config): of a quantised training.
        checkpoint (str, optional): weights. Defaults to the config's ``load_from``.
        images (int): of ``val_dataloader`` to evaluate on. Defaults to 2,000.
        calibration_images (int): of ``train_dataloader``. Defaults to 512.

    Raises:
        QuantizationError: the config has no policy, no checkpoint, or no images for one of the two.
    """

    def __init__(self, cfg: Config, checkpoint: Optional[str] = None, images: int = 2000,
                 calibration_images: int = 512) -> None:
        self.checkpoint = checkpoint or cfg.get('load_from')
        if self.checkpoint is None:
            raise QuantizationError(f'expected a checkpoint, got none, and no load_from in {cfg.filename}; a model '
                                    'with random weights has no sensitivities')
        self.model = quantised_model(cfg, self.checkpoint)
        self.plan = copy.deepcopy(self.model.plan)
        self.batches = list(build_batches(cfg.val_dataloader, images))
        batches = build_batches(training_images(cfg), calibration_images)
        self.calibration_images = self._preprocess(batches)
        self.calibrate()

    def _preprocess(self, batches) -> list:
        return calibration_images(self.model, batches, len(batches))

    def calibrate(self) -> None:
        """Give a scale to every quantizer that has none."""
        calibrate(self.model, self.calibration_images)

    def use(self, plan: QuantPlan) -> None:
        """Quantise the latent weights by another plan and calibrate."""
        unquantize_(self.model)
        apply_plan(self.model, plan)
        self.model.plan = plan
        self.calibrate()

    def score(self) -> Score:
        """Return how good the model is as it is now."""
        return evaluate(self.model, self.batches)

    def image(self) -> torch.Tensor:
        """Return one blank image of the evaluation's size, for counting operations."""
        return torch.zeros_like(self.calibration_images[0][:1])


def quantised_model(cfg: Config, checkpoint: Optional[str] = None) -> torch.nn.Module:
    """Return the model of a config that has all that calibration and evaluation need.

    Raises:
        QuantizationError: the config has no policy, one that leaves all in float, or no images.
    """
    if (cfg.model.get('policy') or None) is None:
        raise QuantizationError(f'expected a config whose model has a policy, got {cfg.model.type} without one in '
                                f'{cfg.filename}; give the config of a quantised training')
    for key in ('train_dataloader', 'val_dataloader'):
        if cfg.get(key) is None:
            raise QuantizationError(f'expected {key} in {cfg.filename}, got none: images are needed to calibrate on '
                                    'and to evaluate on')
    model = build_model(cfg, checkpoint)
    if not any(True for _ in iter_quantizers(model)):
        raise QuantizationError('expected a policy that quantises something, got one that leaves all in float in '
                                f'{cfg.filename}')
    for module in model.modules():
        if isinstance(module, SlotMixin):
            module.strict = False  # a product with a part in float has no codes
    return model


def training_images(cfg: Config) -> dict:
    """Return a data loader's config for single, plain training images: prepared as those of ``val_dataloader``."""
    dataset = cfg.train_dataloader['dataset']
    while 'dataset' in dataset:  # multiple crops, repetition, ... around the images
        dataset = dataset['dataset']
    return dict(dataset=dict(dataset, pipeline=cfg.val_dataloader['dataset']['pipeline']),
                batch_size=cfg.val_dataloader['batch_size'])
