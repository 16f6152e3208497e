"""What must hold before a model is exported."""
from typing import List

import torch
from torch import nn

from vvq_mm.errors import QuantizationError
from vvq_mm.quantizers import Quantizer
from vvq_mm.surgery import iter_quantizers


def check_exportable(model: nn.Module) -> None:
    """Raise unless every quantizer of the model is ready and finite, and there is one.

    Args:
        model (nn.Module): a quantised model with its trained weights.

    Raises:
        QuantizationError: the model is in float; a scale was never calibrated, or a scale, offset or weight is not
            finite; or a quantizer leaves a part of its tensor in float, which has no codes.

    Example:
        >>> check_exportable(nn.Linear(2, 2))
        Traceback (most recent call last):
        ...
        vvq_mm.errors.QuantizationError: expected a quantised model to export, got Linear without a quantised layer; ...
    """
    quantizers = list(iter_quantizers(model))
    if not quantizers:
        raise QuantizationError(f'expected a quantised model to export, got {type(model).__name__} without a quantised '
                                'layer; give the config that it was trained with, with model.policy')
    waiting = [quantizer for *_, quantizer in quantizers if not quantizer.ready]
    if waiting:
        names = ', '.join(quantizer.where for quantizer in waiting[:3])
        raise QuantizationError(f'expected calibrated scales, {len(waiting)} of {len(quantizers)} quantizers have none '
                                f'({names}{", ..." if len(waiting) > 3 else ""}): {_why(waiting)}; export a checkpoint '
                                'that was trained with this config')
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise QuantizationError(f'expected finite numbers, got NaN or infinity in {name}; the training diverged: '
                                    'export an earlier checkpoint')
    for name, _, slot, quantizer in quantizers:
        if quantizer.in_float is not None:
            raise QuantizationError(f'expected tensors that are quantised as a whole, got {name} ({slot}) with a '
                                    'float_part, which an analysis leaves; remove it from the policy')


def _why(waiting: List[Quantizer]) -> str:
    """Return why quantizers have no scale: the checkpoint that was loaded had other codes, or none."""
    other = next((quantizer for quantizer in waiting if quantizer.loaded_grid is not None), None)
    if other is None:
        return 'the checkpoint is of a full-precision model, or of one that was never calibrated'
    return (f'the checkpoint is of another plan, with codes from {other.loaded_grid.qmin} to {other.loaded_grid.qmax} '
            f'where the config has {other.qmin} to {other.qmax} ({other.where})')
