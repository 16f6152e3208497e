"""Which products of an exported file run on integers, read from the graph that the runtime made of it."""
import os
import tempfile
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Union

from vvq_mm.errors import QuantizationError

from .onnx_trace import PRODUCTS
from .optional import require
from .runtimes import openvino_hints

# What ONNX Runtime makes of them where both operands stay integers.
INTEGER_OPERATORS = ('MatMulIntegerToFloat', 'MatMulInteger', 'QLinearMatMul', 'QGemm', 'QLinearConv', 'ConvInteger')
INTEGER_PRIMITIVES = ('i8', 'I8', 'u8')  # the ends of what OpenVINO calls its integer implementations
# its layers that multiply; the last fuses attention
COMPUTING = ('FullyConnected', 'MatMul', 'Convolution', 'Subgraph')


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


class _InFile(NamedTuple):
    aliases: List[str]  # names that the fused form may go by: its own, and of what follows, which a runtime may remove
    quantised: bool  # whether both operands come from DequantizeLinear


def _products(path: Path) -> Dict[str, _InFile]:
    """Return what a file says of its products, by their names."""
    nodes = require('onnx').load(path).graph.node
    makers = {value: node.op_type for node in nodes for value in node.output}
    users: Dict[str, list] = {}
    for node in nodes:
        for value in node.input:
            users.setdefault(value, []).append(node)
    found = {}
    for node in nodes:
        if node.op_type in PRODUCTS:
            aliases, following = [node.name], users.get(node.output[0], [])
            while len(following) == 1 and following[0].op_type in ('Add', 'Mul'):
                aliases.append(following[0].name)
                following = users.get(following[0].output[0], [])
            operands = [makers.get(value) for value in node.input[:2]]
            found[node.name] = _InFile(aliases, operands == ['DequantizeLinear'] * 2)
    return found


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
    """Read OpenVINO's execution graph: a layer knows the names it was made of and its implementation.

    Its precision alone says nothing: a layer with 8-bit weights that computes in float goes by i8, too. So does a fused
    attention if one of its two products is on integers: the operands in the file say which.
    """
    openvino = require('openvino')
    compiled = openvino.Core().compile_model(str(path), 'CPU', openvino_hints())
    layers: Dict[str, tuple] = {}  # name -> implementation, and the names that the layer was made of
    for operator in compiled.get_runtime_model().get_ops():
        info = {key: str(value.astype(str)) for key, value in operator.get_rt_info().items()
                if key in ('originalLayersNames', 'layerType', 'primitiveType')}
        if info['layerType'] in COMPUTING:
            names = {name.split('/')[0] for name in info['originalLayersNames'].split(',')}
            layers[operator.get_friendly_name()] = (f'{info["layerType"]} {info["primitiveType"]}', names)
    products = _products(path)
    found = {name: next((key for alias in product.aliases for key, (_, names) in layers.items() if alias in names),
                        None) for name, product in products.items()}
    nameless = {kernel for key, (kernel, _) in layers.items() if key not in found.values()}
    rest = nameless.pop() if len(nameless) == 1 else 'unknown'  # of a layer without bias OpenVINO drops the name
    kernels = {name: rest if key is None else layers[key][0] for name, key in found.items()}
    return [Product(name, kernel.endswith(INTEGER_PRIMITIVES) and products[name].quantised, kernel)
            for name, kernel in kernels.items()]


def _integer(path: Path) -> List[Product]:
    from .engine import INTEGER, engine_report, integer_engine
    from .packed import load
    report = engine_report(integer_engine(load(path), compiled=False))
    return [Product(name, reason == INTEGER, reason) for name, reason in report.items()]


_READERS: Dict[str, Callable] = dict(onnxruntime=_onnxruntime, openvino=_openvino, integer=_integer)
