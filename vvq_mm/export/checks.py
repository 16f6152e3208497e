"""What must hold before a model is exported."""
import torch
from torch import nn

from vvq_mm.errors import QuantizationError
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
    waiting = [quantizer.where for *_, quantizer in quantizers if not quantizer.ready]
    if waiting:
        raise QuantizationError(f'expected calibrated scales, {len(waiting)} of {len(quantizers)} quantizers have none '
                                f'({", ".join(waiting[:3])}): this is a full-precision checkpoint, or one of other bit '
                                'widths; export a checkpoint that was trained with this config')
    for name, module, slot, quantizer in quantizers:
        tensors = dict(scale=quantizer.scale, offset=quantizer.offset)
        if slot == 'weight':
            tensors['weight'] = module.weight
        for kind, tensor in tensors.items():
            if tensor is not None and not torch.isfinite(tensor).all():
                raise QuantizationError(f'expected finite numbers, got NaN or infinity in the {kind} of '
                                        f'{name} ({slot}); the training diverged: export an earlier checkpoint')
        if quantizer.in_float is not None:
            raise QuantizationError(f'expected tensors that are quantised as a whole, got {name} ({slot}) with a '
                                    'float_part, which an analysis leaves; remove it from the policy')
