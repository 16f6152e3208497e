"""Distillation from a teacher that runs on the same crops."""
from typing import List, Optional, Union

import torch
from torch import Tensor, nn

from vvq_mm.functional.soft_label import soft_cross_entropy
from vvq_mm.registry import MODELS
from vvq_mm.utils.teacher import build_teacher

from .base import Distiller


@MODELS.register_module()
class TeacherDistiller(Distiller):
    """Soft cross-entropy with an online teacher's probabilities.

    The teacher is frozen, always in eval mode, and outside every state dict. It gets the student's inputs, so it must
    have been trained with the same normalisation.

    Args:
        teacher (dict | str): model config, the path of a config, a model name of MMPretrain, or ``timm:NAME``.
        checkpoint (str, optional): its weights.
        **kwargs: arguments of :class:`Distiller`.
    """

    def __init__(self, teacher: Union[dict, str], checkpoint: Optional[str] = None, **kwargs) -> None:
        super().__init__(**kwargs)
        model = build_teacher(teacher, checkpoint)
        self._teacher = (model, )  # a tuple hides it from the module tree

    @property
    def teacher(self) -> nn.Module:
        """The teacher."""
        return self._teacher[0]

    def soft_loss(self, logits: Tensor, inputs: Tensor, data_samples: List) -> Tensor:
        with torch.no_grad():
            self.teacher.to(inputs.device)
            probabilities = (self.teacher(inputs).float() / self.temperature).softmax(-1)
        return soft_cross_entropy(logits, probabilities, self.temperature)
