"""The rows of the inference benchmark: which file runs, and in what."""
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, List, Optional, Sequence

import torch
from torch import Tensor

from vvq_mm.export.kernels import integer_products
from vvq_mm.export.runtimes import open_runtime

from .float_reference import FloatFiles, load_float
from .libraries import use_library

FP32, BF16, OURS = 'FP32', 'BF16', 'ours'
RUNTIMES = dict(pytorch='PyTorch', integer='PyTorch', onnxruntime='ONNX Runtime', openvino='OpenVINO')


@dataclass(frozen=True)
class Row:
    """One way to run the model.

    Args:
        name (str): of the row.
        group (str): ``FP32``, ``BF16`` or ``ours``.
        backend (str): ``pytorch`` for the float network in PyTorch, else one of :func:`vvq_mm.export.open_runtime`.
        file (str): what it runs.
        precision (str): of the products of a float network. Defaults to ``float32``.
        compiled (bool): of the float network in PyTorch: whether ``torch.compile`` compiles it. Defaults to False.
        frozen (bool): whether the compiler takes the weights for constants and packs them. Defaults to False.
        library (str): of float32 products in PyTorch, ``MKL`` or ``oneDNN``. Defaults to ``MKL``.
    """

    name: str
    group: str
    backend: str
    file: str
    precision: str = 'float32'
    compiled: bool = False
    frozen: bool = False
    library: str = 'MKL'

    @property
    def runtime(self) -> str:
        """Name of the runtime, whose full-precision rows it is compared with."""
        return RUNTIMES[self.backend]

    @property
    def file_bytes(self) -> int:
        return Path(self.file).stat().st_size


def make_rows(floats: FloatFiles, packed: Sequence[Path], onnx: Sequence[Path],
              libraries: Sequence[str] = ('MKL', )) -> List[Row]:
    """Return all rows in the order of the table.

    Args:
        floats (FloatFiles): the full-precision network.
        packed (sequence of Path): for the integer engine.
        onnx (sequence of Path): ours, for ONNX Runtime and OpenVINO.
        libraries (sequence of str): of float32 products on this CPU, the fastest first. Defaults to ``MKL`` alone.
    """
    file, library = str(floats.checkpoint), libraries[0]
    torch_rows = [
        *(Row(f'PyTorch FP32, {name}', FP32, 'pytorch', file, library=name) for name in sorted(libraries)),
        Row('PyTorch FP32, compiled', FP32, 'pytorch', file, compiled=True, library=library),
        Row('PyTorch FP32, compiled, frozen', FP32, 'pytorch', file, compiled=True, frozen=True, library=library),
        Row('PyTorch BF16', BF16, 'pytorch', file, 'bfloat16'),
        Row('PyTorch BF16, compiled, frozen', BF16, 'pytorch', file, 'bfloat16', compiled=True, frozen=True)]
    float_rows = [Row(f'{RUNTIMES[backend]} {group}, opset {opset}', group, backend, str(path), precision)
                  for backend, group, precision in (('onnxruntime', FP32, 'float32'), ('openvino', FP32, 'float32'),
                                                    ('openvino', BF16, 'bfloat16'))
                  for opset, path in floats.onnx.items()]
    ours = [*_ours('ONNX Runtime, ours', 'onnxruntime', onnx), *_ours('OpenVINO, ours', 'openvino', onnx),
            *(replace(row, library=library) for row in _ours('integer engine, ours', 'integer', packed))]
    return [*torch_rows, *float_rows, *ours]


def _ours(name: str, backend: str, files: Sequence[Path]) -> List[Row]:
    """Return a row per file, with the file's name in the row's where there are several."""
    return [Row(f'{name}, {path.name}' if len(files) > 1 else name, OURS, backend, str(path))
            for path in files]


def open_row(row: Row, threads: int = 1) -> Callable[[Tensor], Tensor]:
    """Return what turns images (B, C, H, W) into logits (B, classes), both float32.

    PyTorch computes with the threads of the process, which must be ``threads`` already.

    Raises:
        QuantizationError: a package is missing, or the runtime does not know the graph.
    """
    if row.backend in ('onnxruntime', 'openvino'):
        return open_runtime(row.file, row.backend, threads, row.precision)
    if row.backend == 'integer':
        network, dtype = open_runtime(row.file, 'integer'), torch.float32
    else:
        dtype = getattr(torch, row.precision)
        network = load_float(row.file).to(dtype)
        if row.compiled:
            network.compile(dynamic=False, options=dict(freezing=row.frozen))

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        use_library(row.library)
        return network(images.to(dtype)).float()

    return run


def integer_share(row: Row) -> Optional[List[int]]:
    """Return how many products of a row run in integer kernels and how many there are; None for a float network.

    It is read from what the runtime made of the graph; see :func:`vvq_mm.export.integer_products`.
    """
    if row.group != OURS:
        return None
    products = integer_products(row.file, row.backend)
    return [sum(product.integer for product in products), len(products)]
