"""A quantised model as an ONNX file of standard operators."""
import importlib
import json
from pathlib import Path
from typing import Union

from torch import nn

from vvq_mm.errors import QuantizationError

from .checks import check_exportable
from .files import whole_file
from .onnx_lower import lower
from .onnx_trace import trace
from .optional import require

MIN_OPSET = 21  # the first with four-bit integers
DEFAULT_OPSET = 24  # the highest with which both ONNX Runtime 1.32 and OpenVINO 2026.4 run every width
KEY = 'vvq_mm'  # of the description among the file's metadata


def export_onnx(model: nn.Module, path: Union[str, Path], description: dict, opset: int = DEFAULT_OPSET) -> None:
    """Write a quantised model as an ONNX file; input ``images`` (batch, C, H, W), output ``logits`` (batch, classes).

    Args:
        model (nn.Module): a quantised model whose scales are all known.
        path (str | Path): the file to write.
        description (dict): of :func:`vvq_mm.export.describe`; its JSON goes into the file.
        opset (int): version of ONNX's operators, at least 21. Weights of up to 4 bits are stored in 4 bits, and from 25
            on those of 2 bits in 2, which OpenVINO does not read. Older runtimes want a lower one. Defaults to 24.

    Raises:
        QuantizationError: the model cannot be exported, or the packages to do so are missing.
    """
    check_opset(opset)
    check_exportable(model)
    graph = trace(model, description['input_shape'], opset)
    lower(graph, model, opset)
    _save(graph, path, description)


def check_opset(opset: int) -> None:
    """Raise a :class:`QuantizationError` unless ONNX files of this opset can be written here."""
    newest = require('onnx').defs.onnx_opset_version()
    require('onnxscript')
    if not MIN_OPSET <= opset <= newest:
        raise QuantizationError(f'expected an opset from {MIN_OPSET} (the first with four-bit integers) to {newest} '
                                f'(what the installed onnx knows), got {opset}; {DEFAULT_OPSET} is the default')


def export_float_onnx(model: nn.Module, path: Union[str, Path], description: dict, opset: int = DEFAULT_OPSET) -> None:
    """Write the float network on the latent weights in the same way, to compare size and speed with."""
    _save(trace(model, description['input_shape'], opset, quantised=False), path, description)


def _save(graph, path: Union[str, Path], description: dict) -> None:
    passes = importlib.import_module('onnx_ir.passes.common')
    passes.ClearMetadataAndDocStringPass()(graph)  # stack traces of the machine that exported
    for value in (*graph.graph.inputs, *graph.graph.outputs, *graph.graph.initializers.values()):
        value.metadata_props.clear()  # the exporter's names, which that pass leaves
    graph.metadata_props[KEY] = json.dumps(description, separators=(',', ':'))
    graph.producer_name, graph.producer_version = 'vvq_mm', description['vvq_mm']
    with whole_file(path) as beside:
        importlib.import_module('onnx_ir').save(graph, beside)
        importlib.import_module('onnx').checker.check_model(str(beside), full_check=True)
