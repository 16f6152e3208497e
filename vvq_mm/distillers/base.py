"""What every distiller is, and how several become one."""
from typing import Dict, List

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vvq_mm.registry import MODELS


class Distiller(nn.Module):
    """Turns the student's logits into losses; a subclass writes :meth:`soft_loss`.

    Args:
        temperature (float): divides the logits of student and teacher; the loss is multiplied by its square, so that
            its gradient keeps its size. Defaults to 1.
        hard_weight (float): share of the cross-entropy with the true labels, 0 to 1. Defaults to 0, as in the paper.
        weight (float): factor on the whole loss. Defaults to 1.
    """

    uses_stored_labels = False

    def __init__(self, temperature: float = 1.0, hard_weight: float = 0.0, weight: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f'expected a temperature above 0, got {temperature} for {type(self).__name__}')
        if not 0 <= hard_weight <= 1:
            raise ValueError(f'expected hard_weight between 0 and 1, got {hard_weight} for {type(self).__name__}')
        self.temperature, self.hard_weight, self.weight = temperature, hard_weight, weight

    def forward(self, logits: Tensor, inputs: Tensor, data_samples: List) -> Dict[str, Tensor]:
        """Return ``dict(loss_kd=..., loss_hard=...)``.

        Args:
            logits (Tensor): (B, C), of the student.
            inputs (Tensor): (B, 3, H, W), what the student saw.
            data_samples (list): B samples with ``gt_label`` and, for stored labels, ``soft_label``.
        """
        losses = dict(loss_kd=self.soft_loss(logits, inputs, data_samples) * (self.weight * (1 - self.hard_weight)))
        if self.hard_weight:
            labels = torch.cat([sample.gt_label for sample in data_samples]).to(logits.device)
            losses['loss_hard'] = F.cross_entropy(logits.float(), labels) * (self.weight * self.hard_weight)
        return losses

    def soft_loss(self, logits: Tensor, inputs: Tensor, data_samples: List) -> Tensor:
        """Return the distillation loss; written by subclasses."""
        raise NotImplementedError


@MODELS.register_module()
class SumDistiller(nn.Module):
    """The sum of several distillers, stored labels and an online teacher, say.

    Args:
        distillers (dict): name -> config; a loss of distiller ``a`` is logged as ``loss_kd_a``.

    Example:
        >>> dict(type='vvq_mm.SumDistiller', distillers=dict(
        ...     stored=dict(type='vvq_mm.SoftLabelDistiller', weight=0.5),
        ...     teacher=dict(type='vvq_mm.TeacherDistiller', teacher='deit-small_4xb256_in1k',
    ...                  checkpoint='deit_small.pth', weight=0.5)))
    """

    def __init__(self, distillers: Dict[str, dict]) -> None:
        super().__init__()
        self.distillers = nn.ModuleDict({name: MODELS.build(dict(config)) for name, config in distillers.items()
                                         if name != '_scope_'})

    @property
    def uses_stored_labels(self) -> bool:
        return any(distiller.uses_stored_labels for distiller in self.distillers.values())

    def forward(self, logits: Tensor, inputs: Tensor, data_samples: List) -> Dict[str, Tensor]:
        return {f'{key}_{name}': value for name, distiller in self.distillers.items()
                for key, value in distiller(logits, inputs, data_samples).items()}
