"""MMPretrain classifiers whose operands are quantised and which learn from a distiller."""
import logging
from typing import Dict, List, Optional

import numpy as np
import torch
from mmengine.logging import MMLogger
from mmpretrain.models import ImageClassifier, TimmClassifier
from mmpretrain.structures import DataSample
from torch import nn

from vvq_mm.errors import QuantizationError
from vvq_mm.registry import MODELS
from vvq_mm.surgery import iter_quantizers, quantize_


class QATMixin:
    """Adds a bit policy, a distiller and a regulariser to a classifier of MMPretrain.

    The float classifier is built first, then quantised in place by the policy: float checkpoints load under their own
    keys, and the quantizers' keys are added. The distiller lives outside the module tree, so a teacher is in no
    checkpoint.

    Args:
        policy (dict, optional): config of a policy. None leaves the model in float.
        distiller (dict, optional): config of a distiller, which replaces the head's own loss. None trains on the
            labels.
        **kwargs: arguments of the classifier.
    """

    def __init__(self, *args, policy: Optional[dict] = None, distiller: Optional[dict] = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        _use_plain_rates(self)
        self.plan = None
        if policy is not None:
            # what layers have to say goes to the console and file of this run
            logging.getLogger('vvq_mm').handlers = list(MMLogger.get_current_instance().handlers)
            self.plan = quantize_(self, dict(policy))
            MMLogger.get_current_instance().info(f'Quantised by {policy["type"]}: {self.plan.summary()}.')
        # tuples hide modules from nn.Module: no keys, no DDP traffic, no optimizer entries
        self._distiller = (None if distiller is None else MODELS.build(dict(distiller)), )
        self.regularizer: Optional[nn.Module] = None
        self.register_load_state_dict_post_hook(_report_quantizers)
        self._check_augments()

    @property
    def distiller(self):
        """The distiller, or None."""
        return self._distiller[0]

    def loss(self, inputs: torch.Tensor, data_samples: List[DataSample]) -> Dict[str, torch.Tensor]:
        """Return the distiller's losses, or the head's own without one, and the regulariser's while it is active."""
        if self.distiller is None:
            losses = super().loss(inputs, data_samples)
        else:
            losses = self.distiller(self(inputs, mode='tensor'), inputs, data_samples)
        if self.regularizer is not None and self.regularizer.active:
            losses[self.regularizer.loss_name] = self.regularizer(self)
        return losses

    def _check_augments(self) -> None:
        """Raise if images would be mixed while their labels are fixed."""
        augments = getattr(self.data_preprocessor, 'batch_augments', None)
        if augments is not None and self.distiller is not None and self.distiller.uses_stored_labels:
            names = ', '.join(type(augment).__name__ for augment in augments.augments)
            raise QuantizationError(f'expected no batch augmentation together with stored soft labels, got {names} in '
                                    'model.train_cfg: a stored label belongs to one crop and cannot be mixed; set '
                                    'model=dict(train_cfg=None)')


@MODELS.register_module()
class QATImageClassifier(QATMixin, ImageClassifier):
    """``mmpretrain.ImageClassifier`` with a bit policy and a distiller."""


@MODELS.register_module()
class QATTimmClassifier(QATMixin, TimmClassifier):
    """``mmpretrain.TimmClassifier`` with a bit policy and a distiller: ``model_name`` is any of timm's transformers."""


def _use_plain_rates(model: nn.Module) -> None:
    """Turn drop rates that are numpy scalars in MMPretrain into floats: ``torch.compile`` breaks its graph on those."""
    for module in model.modules():
        if isinstance(getattr(module, 'drop_prob', None), np.floating):
            module.drop_prob = float(module.drop_prob)


def _report_quantizers(model: nn.Module, incompatible_keys) -> None:
    """Say, once per load, how many quantizers still need calibration and why."""
    quantizers = [quantizer for *_, quantizer in iter_quantizers(model)]
    waiting = [quantizer for quantizer in quantizers if not quantizer.ready]
    if not waiting:
        return
    logger = MMLogger.get_current_instance()
    changed = [(quantizer.loaded_grid, quantizer.grid) for quantizer in waiting if quantizer.loaded_grid]
    if changed:
        words = {f'{old} -> {new}' if old.bits == new.bits else f'{old.bits} -> {new.bits}' for old, new in changed}
        logger.warning(f'The checkpoint holds other bit widths ({", ".join(sorted(words))}): the scales of '
                       f'{len(changed)} quantizers are dropped and will be calibrated.')
    logger.info(f'{len(waiting)} of {len(quantizers)} quantizers have no scale yet and will be calibrated.')
