"""A quantised model as an ONNX graph in which every quantised tensor passes through a marker that names its slot.

PyTorch's exporter sees the float network and the markers; :mod:`vvq_mm.export.onnx_lower` then puts standard quantisation
operators in their place. So the graph around the quantisers is PyTorch's, for any model that it can export.
"""
import contextlib
import copy
import io
import logging
import warnings
from typing import Iterator, Sequence

import torch
from torch import Tensor, nn

from vvq_mm.layers import SLOT_SUFFIX
from vvq_mm.surgery import iter_quantizers, unquantize_

from .optional import require

DOMAIN, MARKER, SLOT = 'vvq_mm', 'Quantized', 'slot'


class _Marker(nn.Module):
    """Stands where a quantizer stood: returns its input, and leaves a node that names the slot."""

    mode, in_float = 'quantize', None  # what layers ask a quantizer for

    def __init__(self, slot: str) -> None:
        super().__init__()
        self.slot = slot

    def forward(self, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(f'{DOMAIN}::{MARKER}', (x, ), {SLOT: self.slot}, dtype=x.dtype, shape=x.shape,
                                       version=1)


def trace(model: nn.Module, input_shape: Sequence[int], opset: int, quantised: bool = True):
    """Return ``model`` as an ``onnx_ir.Model``: input ``images`` (batch, C, H, W), output ``logits`` (batch, classes).

    Args:
        model (nn.Module): a quantised model; it stays as it is.
        input_shape (sequence of int): C, H, W of a preprocessed image.
        opset (int): version of ONNX's operators.
        quantised (bool): put a node ``vvq_mm::Quantized`` with the attribute ``slot`` (``MODULE.SLOT``) at every
            quantised tensor; otherwise the float network on the latent weights is returned. Defaults to True.
    """
    require('onnx')
    require('onnxscript')
    plain = copy.deepcopy(model).cpu().float().eval()
    if quantised:
        for name, module, slot, _ in list(iter_quantizers(plain)):
            setattr(module, slot + SLOT_SUFFIX, _Marker(f'{name}.{slot}'))
            module.matmul = 'float'
    else:
        unquantize_(plain)
    with _quietly(), torch.no_grad():
        program = torch.onnx.export(
            plain, (torch.zeros(2, *input_shape), ), dynamo=True, opset_version=opset, verbose=False,
            input_names=['images'], output_names=['logits'],
            dynamic_shapes=[{0: torch.export.Dim('batch')}])
    return program.model


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporter's remarks on its own progress and deprecations from the user's screen."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
