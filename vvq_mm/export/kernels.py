"""Which products of an exported file run on integers, read from the graph that the runtime made of it."""
import os
import tempfile
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Union

from vvq_mm.errors import QuantizationError

from .optional import require

PRODUCTS = ('MatMul', 'Gemm', 'Conv')  # in the file
# What ONNX Runtime makes of them where both operands stay integers.
INTEGER_OPERATORS = ('MatMulIntegerToFloat', 'MatMulInteger', 'QLinearMatMul', 'QGemm', 'QLinearConv', 'ConvInteger')
INTEGER_PRECISIONS = ('i8', 'u8')  # of OpenVINO's layers


class Product(NamedTuple):
    """One matrix product or convolution of an exported file.

    Args:
        name (str): the layer, or ``MODULE.query_key`` and ``MODULE.prob_value`` of an attention.
        integer (bool): whether it runs on integers.
        kernel (str): what the runtime runs, in its own words.
    """

    name: str
    integer: bool
    kernel: str


def integer_products(path: Union[str, Path], backend: str) -> List[Product]:
    """Return every product of an exported file, and whether the runtime computes it on integers.

    Args:
        path (str | Path): an ONNX file for ``onnxruntime`` and ``openvino``, a packed file for ``integer``.
        backend (str): see above.

    Example:
        >>> sum(product.integer for product in integer_products('deit_t_w4a4.onnx', 'openvino'))
        74
    """
    if backend not in _READERS:
        raise QuantizationError(f'expected backend to be one of {", ".join(_READERS)}, got {backend!r}')
    return _READERS[backend](Path(path))


def _products(path: Path) -> Dict[str, List[str]]:
    """Return the name of each product of a file, and the names that its fused form may go by: also of what follows."""
    nodes = require('onnx').load(path).graph.node
    following: Dict[str, List[str]] = {}
    for node in nodes:
        for value in node.input:
            following.setdefault(value, []).append(node.name)
    return {node.name: [node.name, *following.get(node.output[0], [])] for node in nodes if node.op_type in PRODUCTS}


def _onnxruntime(path: Path) -> List[Product]:
    """Let ONNX Runtime write its optimised graph. A fused operator begins with the name of the one it was made of."""
    onnxruntime, onnx = require('onnxruntime'), require('onnx')
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = os.path.join(folder, 'optimised.onnx')
        onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
        graph = onnx.load(options.optimized_model_filepath).graph
    operators = {node.name.split('/')[0]: node.op_type for node in graph.node
                 if node.op_type in (*INTEGER_OPERATORS, *PRODUCTS) or 'MatMul' in node.op_type}
    found = {name: operators.get(name, 'unknown') for name in _products(path)}
    return [Product(name, operator in INTEGER_OPERATORS, operator) for name, operator in found.items()]


def _openvino(path: Path) -> List[Product]:
    """Read OpenVINO's execution graph: a layer knows the names it was made of and the type it computes in."""
    openvino = require('openvino')
    compiled = openvino.Core().compile_model(str(path), 'CPU', dict(INFERENCE_PRECISION_HINT='f32'))
    layers: Dict[str, tuple] = {}
    for operator in compiled.get_runtime_model().get_ops():
        info = {key: str(value.astype(str)) for key, value in operator.get_rt_info().items()
                if key in ('originalLayersNames', 'layerType', 'runtimePrecision')}
        for name in info.get('originalLayersNames', '').split(','):
            layers.setdefault(name.split('/')[0], (info['layerType'], info['runtimePrecision']))
    found = {name: next((layers[alias] for alias in aliases if alias in layers), ('unknown', ''))
             for name, aliases in _products(path).items()}
    return [Product(name, precision in INTEGER_PRECISIONS, f'{kind} {precision}'.strip())
            for name, (kind, precision) in found.items()]


def _integer(path: Path) -> List[Product]:
    from .engine import INTEGER, engine_report, integer_engine
    from .packed import load
    report = engine_report(integer_engine(load(path), compiled=False))
    return [Product(name, reason == INTEGER, reason) for name, reason in report.items()]


_READERS: Dict[str, Callable] = dict(onnxruntime=_onnxruntime, openvino=_openvino, integer=_integer)
