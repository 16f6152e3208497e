"""Running an exported file: one interface to PyTorch, the integer engine, ONNX Runtime and OpenVINO."""
import json
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, NamedTuple, Optional, Union

import torch
from torch import Tensor, nn

from vvq_mm.errors import QuantizationError

from .optional import require

PRECISIONS = dict(float32='f32', bfloat16='bf16')  # OpenVINO's names
# the oldest ONNX Runtime that was seen to run a graph of an opset
OLDEST_ONNXRUNTIME = {21: '1.20', 22: '1.22', 23: '1.23', 24: '1.24', 25: '1.24', 26: '1.26', 27: '1.32', 28: '1.32'}
_FIRST_BYTES = {b'PK': 'a PyTorch checkpoint', b'\x08': 'an ONNX file', b'\x80': 'a pickled PyTorch checkpoint'}


class Runtime:
    """An exported network that turns images into logits, whatever runs it; made by :func:`open_runtime`.

    Attributes:
        path (Path): the file.
        backend (str): what runs it.
        description (dict | None): what the file says of its network (see ``vvq_mm.export.description``); None for an
            ONNX file that was not written by this package.
        module (nn.Module | None): the network of the backends that run in PyTorch, which can be moved to a device.
    """

    def __init__(self, path: Path, backend: str, run: Callable, description: Optional[dict],
                 module: Optional[nn.Module] = None) -> None:
        self.path, self.backend, self.description, self.module = path, backend, description, module
        self._run = run

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes), float32, of preprocessed images (B, C, H, W), on the images' device.

        Raises:
            QuantizationError: images of another shape than the network's.
        """
        expected = list((self.description or {}).get('input_shape') or images.shape[1:])
        if list(images.shape[1:]) != expected:
            raise QuantizationError(f'expected images of shape (B, {", ".join(map(str, expected))}) for {self.path}, '
                                    f'got {tuple(images.shape)}; resize or crop them')
        return self._run(images)


def open_runtime(path: Union[str, Path], backend: Optional[str] = None, threads: Optional[int] = None,
                 precision: str = 'float32') -> Runtime:
    """Open an exported file for inference.

    Args:
        path (str | Path): a packed file for ``packed`` and ``integer``, an ONNX file for ``onnxruntime`` and
            ``openvino``.
        backend (str, optional): ``packed`` (fake-quantised forward in PyTorch), ``integer`` (products of integer codes
            in PyTorch), ``onnxruntime`` or ``openvino``. Defaults to ``packed`` for a packed file and ``onnxruntime``
            for an ONNX file.
        threads (int, optional): CPU threads of one inference. Defaults to the backend's own choice.
        precision (str): what the products that are not quantised compute in: ``float32``, or ``bfloat16`` in OpenVINO
            (whose own default depends on the CPU). Defaults to ``float32``.

    Raises:
        FileNotFoundError: no such file.
        QuantizationError: a file of another kind, a missing package, or a graph that the runtime does not know.

    Example:
        >>> open_runtime('vit_w4a4.onnx', 'openvino', threads=1)(torch.zeros(8, 1, 32, 32)).shape
        torch.Size([8, 10])
    """
    path = Path(path).expanduser()
    kind = file_kind(path)
    if backend is None:
        backend = 'packed' if kind == 'a packed file' else 'onnxruntime'
    if backend not in BACKENDS:
        raise QuantizationError(f'expected backend to be one of {", ".join(BACKENDS)}, got {backend!r}')
    if precision not in (PRECISIONS if backend == 'openvino' else ('float32', )):
        raise QuantizationError(f'expected precision float32, or bfloat16 with the backend openvino, got {precision!r} '
                                f'with {backend}')
    opener = BACKENDS[backend]
    if kind != opener.reads:
        fitting = [name for name, other in BACKENDS.items() if other.reads == kind]
        advice = f'use the backend {" or ".join(fitting)}' if fitting else 'export it first with tools/export.py'
        raise QuantizationError(f'expected {opener.reads} for the backend {backend}, got {kind} at {path}; {advice}')
    return opener.open(path, threads, precision)


def file_kind(path: Path) -> str:
    """Return what a file is by its first bytes: 'a packed file', 'an ONNX file', or what else it looks like."""
    if not path.is_file():
        raise FileNotFoundError(f'expected an exported file at {path}, but there is no such file; check the path')
    with open(path, 'rb') as file:
        start = file.read(9)
    if start[8:] == b'{':  # safetensors: 8 bytes with the length of a JSON header, then the header
        return 'a packed file'
    return next((kind for mark, kind in _FIRST_BYTES.items() if start.startswith(mark)), 'an unknown kind of file')


def _packed(path: Path, threads: Optional[int], precision: str, engine: bool = False) -> Runtime:
    from .packed import load
    model = load(path)
    description, backend = model.description, 'packed'
    if engine:
        from .engine import integer_engine
        model, backend = integer_engine(model), 'integer'

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        with _torch_threads(threads):
            return model(images).float()

    return Runtime(path, backend, run, description, model)


def _integer(path: Path, threads: Optional[int], precision: str) -> Runtime:
    return _packed(path, threads, precision, engine=True)


def _onnxruntime(path: Path, threads: Optional[int], precision: str) -> Runtime:
    onnxruntime = require('onnxruntime')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # errors: a warning is nothing that a user can act on
    # its threads would otherwise go on spinning after a call, and slow down whatever comes next
    options.add_session_config_entry('session.force_spinning_stop', '1')
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    except Exception as error:  # one class per status code, with Exception as their only base
        raise _unreadable(path, onnxruntime, str(error)) from error
    name = session.get_inputs()[0].name
    description = _description(path, session.get_modelmeta().custom_metadata_map.get('vvq_mm'))

    def run(images: Tensor) -> Tensor:
        logits = session.run(None, {name: images.detach().cpu().contiguous().numpy()})[0]
        return torch.from_numpy(logits).to(images.device)

    return Runtime(path, 'onnxruntime', run, description)


def _openvino(path: Path, threads: Optional[int], precision: str) -> Runtime:
    openvino = require('openvino')
    core = openvino.Core()
    try:
        model = core.read_model(path)
        request = core.compile_model(model, 'CPU', openvino_hints(threads, precision)).create_infer_request()
    except RuntimeError as error:
        raise _unreadable(path, openvino, str(error)) from error
    place = ['framework', 'vvq_mm']  # where OpenVINO keeps the metadata of an ONNX file
    description = _description(path, model.get_rt_info(place).astype(str) if model.has_rt_info(place) else None)

    def run(images: Tensor) -> Tensor:
        logits = request.infer([images.detach().cpu().contiguous().numpy()], share_inputs=True)[0]
        return torch.from_numpy(logits).to(images.device)

    return Runtime(path, 'openvino', run, description)


def openvino_hints(threads: Optional[int] = None, precision: str = 'float32') -> dict:
    """Return the settings with which OpenVINO computes what the file says, and nothing narrower."""
    hints = dict(INFERENCE_PRECISION_HINT=PRECISIONS[precision], PERFORMANCE_HINT='LATENCY',
                 # by itself OpenVINO quantises the inputs of layers whose weights alone are quantised
                 DYNAMIC_QUANTIZATION_GROUP_SIZE=0)
    return hints if threads is None else dict(hints, INFERENCE_NUM_THREADS=threads)


def _description(path: Path, text: Optional[str]) -> Optional[dict]:
    try:
        return None if text is None else json.loads(text)
    except json.JSONDecodeError as error:
        raise QuantizationError(f'expected a description in JSON in the metadata of {path}, got something else; export '
                                'it again') from error


def _unreadable(path: Path, runtime, message: str) -> QuantizationError:
    """Return the error of a graph that ``runtime`` refused: its opset is too new, or whatever the runtime says."""
    name = f'{runtime.__name__} {runtime.__version__.split("-")[0]}'
    opset = re.search(r'Opset (\d+) is under development', message)
    if opset is None and 'Unsupported type' in message:
        return QuantizationError(f'expected weights of types that {name} reads, got two-bit ones in {path}, which files '
                                 'from opset 25 on hold; export it again with --opset 24, or run it in onnxruntime')
    if opset is None:
        return QuantizationError(f'expected a whole ONNX file that {name} can run, got {path}: {_last_line(message)}; '
                                 'export it again, or take a newer runtime')
    newest = re.search(r'till opset (\d+)', message)
    works = OLDEST_ONNXRUNTIME.get(int(opset[1]))
    advice = f"run `pip install 'onnxruntime>={works}'`" if works else 'export it again with a lower --opset'
    return QuantizationError(f'expected an opset up to {newest[1] if newest else "?"}, which is what {name} knows, got '
                             f'opset {opset[1]} in {path}; {advice}')


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return re.sub(r'^\[ONNXRuntimeError\] : \d+ : \w+ : ', '', lines[-1]) if lines else 'no reason given'


@contextmanager
def _torch_threads(threads: Optional[int]) -> Iterator[None]:
    """Let PyTorch use ``threads`` threads for a while; its setting holds for the whole process."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Backend(NamedTuple):
    open: Callable
    reads: str


BACKENDS = dict(
    packed=_Backend(_packed, 'a packed file'),
    integer=_Backend(_integer, 'a packed file'),
    onnxruntime=_Backend(_onnxruntime, 'an ONNX file'),
    openvino=_Backend(_openvino, 'an ONNX file'),
)
