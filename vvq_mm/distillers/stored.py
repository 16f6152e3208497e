"""Distillation from stored soft labels: no teacher runs during training."""
from typing import List

import torch
from torch import Tensor

from vvq_mm.errors import SoftLabelError
from vvq_mm.functional.soft_label import TAILS, topk_cross_entropy
from vvq_mm.registry import MODELS

from .base import Distiller


@MODELS.register_module()
class SoftLabelDistiller(Distiller):
    r"""Soft cross-entropy with a teacher's top-k probabilities for this very crop (arXiv 2307.00331, after FKD).

    :math:`L = -\frac1B \sum_i \sum_c p_T[i, c] \log \mathrm{softmax}(z_i)[c]`, computed on the k stored classes and the
    tail.

    Args:
        tail (str): what the classes that were not stored get: ``smooth`` (the rest of the probability in equal parts),
            ``renorm`` (nothing; the stored ones are scaled to sum to 1), ``hard`` (the top class gets everything) or
            ``none``. Defaults to ``smooth``, the paper's.
        **kwargs: arguments of :class:`Distiller`.
    """

    uses_stored_labels = True

    def __init__(self, tail: str = 'smooth', **kwargs) -> None:
        super().__init__(**kwargs)
        if tail not in TAILS:
            raise SoftLabelError(f'expected tail to be one of {", ".join(TAILS)}, got {tail!r} for SoftLabelDistiller')
        self.tail = tail
        self._checked = False

    def soft_loss(self, logits: Tensor, inputs: Tensor, data_samples: List) -> Tensor:
        if 'soft_label' not in data_samples[0]:
            raise SoftLabelError('expected a soft_label with every crop, got none; name a store in '
                                 'train_dataloader.dataset.soft_labels and keep '
                                 "PackInputs(algorithm_keys=('soft_label', )) in its pipeline")
        labels = torch.stack([sample.soft_label for sample in data_samples]).to(logits.device, non_blocking=True)
        # the first time alone, since it waits for the device; compiled code checks indices itself
        if not self._checked and not torch.compiler.is_compiling():
            _check_classes(labels, logits.shape[-1])
            self._checked = True
        return topk_cross_entropy(logits, labels, self.tail, self.temperature)


def _check_classes(labels: Tensor, num_classes: int) -> None:
    """Raise if a label names a class that the model has not: a GPU would end in an assertion without a place."""
    highest = int(labels[:, 0].max())
    if highest >= num_classes:
        raise SoftLabelError(f'expected class indices below the {num_classes} classes of the model, got {highest} in '
                             'the soft labels; set model.head.num_classes to that of the data set, or give the store '
                             'of another teacher')
