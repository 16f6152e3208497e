"""A quantised model as an ONNX graph in which every quantised tensor passes through a marker that names its slot.

PyTorch's exporter sees the float network and the markers; :mod:`vvq_mm.export.onnx_lower` then puts standard
quantisation operators in their place. So the graph around the quantisers is PyTorch's, for any model that it can
export.
"""
import ast
import contextlib
import copy
import io
import logging
import warnings
from typing import Dict, Iterator, Sequence
from unittest.mock import patch

import torch
from mmpretrain.models.utils.attention import ShiftWindowMSA
from torch import Tensor, nn

from vvq_mm.errors import QuantizationError
from vvq_mm.layers import SLOT_SUFFIX, attention_mixin
from vvq_mm.surgery import iter_quantizers, unquantize_

from .optional import require

DOMAIN, MARKER, SLOT = 'vvq_mm', 'Quantized', 'slot'
PRODUCTS = ('MatMul', 'Gemm', 'Conv', 'Attention')
ATTENTION_PRODUCTS = ('query_key', 'prob_value')
_SCOPES = 'pkg.torch.onnx.name_scopes'  # where the exporter notes the modules that a node comes from


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

    Raises:
        QuantizationError: this version of PyTorch cannot write the opset, or a package to do so is missing.
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
    with _quietly(), _any_batch(), torch.no_grad():
        program = torch.onnx.export(
            plain, (torch.zeros(2, *input_shape), ), dynamo=True, opset_version=opset, verbose=False,
            input_names=['images'], output_names=['logits'],
            dynamic_shapes=[{0: torch.export.Dim('batch')}])
    if program.model.opset_imports[''] != opset:
        raise QuantizationError(f'expected an opset that PyTorch {torch.__version__} can export to, got {opset}; take '
                                'a lower one')
    return program.model


def name_products(model, source: nn.Module) -> None:
    """Name each product of a graph after its module; in an attention ``MODULE.query_key`` and ``MODULE.prob_value``."""
    products: Dict[str, list] = {}
    for node in model.graph:
        if node.op_type in PRODUCTS and _SCOPES in node.metadata_props:
            products.setdefault(ast.literal_eval(node.metadata_props[_SCOPES])[-2], []).append(node)
    for module, nodes in products.items():
        ends = ATTENTION_PRODUCTS if attention_mixin(source.get_submodule(module)) else range(len(nodes))
        for end, node in zip(ends, nodes):
            node.name = f'{module}.{end}' if len(nodes) > 1 else module


@contextlib.contextmanager
def _any_batch() -> Iterator[None]:
    """Let MMPretrain's Swin trace for any batch: its own way from windows to images computes the batch in floats."""
    def window_reverse(windows: Tensor, height: int, width: int, window: int) -> Tensor:
        rows = windows.view(-1, height // window, width // window, window, window, windows.shape[-1])
        return rows.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])

    with patch.object(ShiftWindowMSA, 'window_reverse', staticmethod(window_reverse)):
        yield


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporter's remarks on its own progress and deprecations from the user's screen."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'onnxscript', 'onnx_ir')]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)  # what fails is raised, too
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
