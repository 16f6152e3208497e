"""From a trained checkpoint to a small, fast, verified file: packed, ONNX, and what runs them."""
from .description import build_described, describe
from .engine import engine_report, integer_engine
from .kernels import Product, integer_products
from .onnx_export import export_onnx
from .packed import load, read_packed, save_packed
from .parity import Parity, compare
from .runtimes import BACKENDS, Runtime, open_runtime
from .write import export

__all__ = ['BACKENDS', 'Parity', 'Product', 'Runtime', 'build_described', 'compare', 'describe', 'engine_report',
           'export', 'export_onnx', 'integer_engine', 'integer_products', 'load', 'open_runtime', 'read_packed',
           'save_packed']
