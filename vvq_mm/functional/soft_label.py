"""Soft labels: the cross-entropy with a teacher's probabilities, in closed form when only the top k of them are known.

A top-k label is a float tensor (2, k): row 0 the class indices, row 1 their probabilities, as in FKD (szq0214/FKD).
What the other classes get is the *tail*:

==========  =======================================================================================
``smooth``  the rest of the probability in equal parts (FKD's marginal smoothing, arXiv 2307.00331)
``renorm``  nothing; the k probabilities are divided by their sum
``hard``    nothing; the most probable class gets 1
``none``    nothing; the k probabilities are taken as they are
==========  =======================================================================================
"""
from typing import Optional, Tuple

import torch
from torch import Tensor

from vvq_mm.errors import SoftLabelError

TAILS = ('smooth', 'renorm', 'hard', 'none')


def soft_cross_entropy(logits: Tensor, probabilities: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Return :math:`-\frac{T^2}{B} \sum_i \sum_c p_{ic} \log \mathrm{softmax}(z_i / T)_c`, a scalar.

    Dividing the logits by :math:`T` divides the gradient by about :math:`T^2` (once by the chain rule, once because
    both distributions flatten), so the loss is multiplied by :math:`T^2` to keep its weight beside other losses
    (arXiv 1503.02531). The arithmetic is float32, or float64 for float64 logits.

    Args:
        logits (Tensor): (B, C), of the student, any floating dtype.
        probabilities (Tensor): (B, C), of the teacher.
        temperature (float): divides the logits. Defaults to 1.

    Example:
        >>> soft_cross_entropy(torch.zeros(1, 4), torch.tensor([[1., 0., 0., 0.]]))
        tensor(1.3863)
    """
    log_probabilities = _log_softmax(logits, temperature)
    return -(probabilities.to(log_probabilities.dtype) * log_probabilities).sum(-1).mean() * temperature**2


def topk_cross_entropy(logits: Tensor, label: Tensor, tail: str = 'smooth', temperature: float = 1.0) -> Tensor:
    r"""Return ``soft_cross_entropy(logits, densify(label, C, tail), temperature)`` without building the dense target.

    With :math:`r` the probability of each class of the tail,
    :math:`L = -\sum_{j \le k} (p_j - r) \log \hat p_{c_j} - r \sum_c \log \hat p_c`.

    Args:
        logits (Tensor): (B, C), of the student, any floating dtype.
        label (Tensor): (B, 2, k), class indices (distinct, below C: checked where labels are read) and probabilities.
        tail (str): one of the names at the top of this file. Defaults to ``smooth``.
        temperature (float): divides the logits, see :func:`soft_cross_entropy`. Defaults to 1.

    Raises:
        SoftLabelError: the shape of the label or the name of the tail is wrong.

    Example:
        >>> topk_cross_entropy(torch.zeros(1, 4), torch.tensor([[[2., 0.], [0.6, 0.2]]]))
        tensor(1.3863)
    """
    log_probabilities = _log_softmax(logits, temperature)
    classes, probabilities, rest = _split(label, logits.shape[-1], tail, log_probabilities.dtype)
    if rest is None:
        loss = -(probabilities * log_probabilities.gather(-1, classes)).sum(-1)
    else:
        listed = (probabilities - rest) * log_probabilities.gather(-1, classes)
        loss = -listed.sum(-1) - rest[:, 0] * log_probabilities.sum(-1)
    return loss.mean() * temperature**2


def densify(label: Tensor, num_classes: int, tail: str = 'smooth') -> Tensor:
    """Return the label (B, 2, k) as probabilities of all classes (B, C).

    Example:
        >>> densify(torch.tensor([[[2., 0.], [0.6, 0.2]]]), num_classes=4)
        tensor([[0.2000, 0.1000, 0.6000, 0.1000]])
    """
    classes, probabilities, rest = _split(label, num_classes, tail, torch.promote_types(label.dtype, torch.float32))
    dense = probabilities.new_zeros(len(label), num_classes)
    return (dense if rest is None else dense + rest).scatter(-1, classes, probabilities)


def encode_topk(probabilities: Tensor, k: int) -> Tensor:
    """Return the k largest of (B, C) probabilities, in falling order, as labels (B, 2, k) in float32.

    Example:
        >>> encode_topk(torch.tensor([[0.1, 0.7, 0.2]]), k=2)
        tensor([[[1.0000, 2.0000],
                 [0.7000, 0.2000]]])
    """
    if not 1 <= k <= probabilities.shape[-1]:
        raise SoftLabelError(f'expected k from 1 to the number of classes {probabilities.shape[-1]}, got {k} in '
                             'encode_topk; use the number of classes to keep all')
    values, classes = probabilities.float().topk(k, dim=-1)
    return torch.stack([classes.float(), values], dim=-2)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Return the log-probabilities in float32 or wider, also under autocast."""
    return (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)


def _split(label: Tensor, num_classes: int, tail: str, dtype: torch.dtype) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
    """Return the listed classes (B, k), their probabilities (B, k), and that of each other class (B, 1), None for 0."""
    if tail not in TAILS:
        raise SoftLabelError(f'expected tail to be one of {", ".join(TAILS)}, got {tail!r} in topk_cross_entropy')
    if label.ndim != 3 or label.shape[1] != 2 or label.shape[2] > num_classes:
        raise SoftLabelError(f'expected labels of shape (batch, 2, k) with k up to {num_classes} classes, got '
                             f'{tuple(label.shape)} in topk_cross_entropy; check that the store was made for this '
                             'number of classes')
    classes, probabilities = label[:, 0].long(), label[:, 1].to(dtype)
    if tail == 'renorm':
        return classes, probabilities / probabilities.sum(-1, keepdim=True).clamp_min(torch.finfo(dtype).tiny), None
    if tail == 'hard':
        best = probabilities.argmax(-1, keepdim=True)
        return classes, torch.zeros_like(probabilities).scatter(-1, best, 1.0), None
    k = label.shape[-1]
    if tail == 'none' or k == num_classes:
        return classes, probabilities, None
    # float16 probabilities can sum to a little more than 1: a tail is never negative
    return classes, probabilities, (1 - probabilities.sum(-1, keepdim=True)).clamp_min(0) / (num_classes - k)
