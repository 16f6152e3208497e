"""The activation codes of an exported network, and where a model's own differ from them."""
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from vvq_mm.errors import QuantizationError
from vvq_mm.functional.fake_quant import dequantize
from vvq_mm.quantizers import Quantizer
from vvq_mm.surgery import iter_quantizers

from .onnx_activation import CODES
from .optional import require

LOGITS = 'logits'  # their name among the codes that are read


def onnx_codes(path: Path) -> Callable[[Tensor], Dict[str, np.ndarray]]:
    """Return a function that reads an ONNX file's activation codes: images -> ``MODULE.SLOT`` -> codes, and ``logits``.

    ONNX Runtime fuses less where it has to show codes, so this run may round a value in another way than a plain one.
    """
    onnx, onnxruntime = require('onnx'), require('onnxruntime')
    model = onnx.load(path)
    names: List[str] = [node.output[0] for node in model.graph.node if node.op_type == 'QuantizeLinear']
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])

    def read(images: Tensor) -> Dict[str, np.ndarray]:
        logits, *values = session.run([LOGITS, *names], {session.get_inputs()[0].name: images.numpy()})
        return {LOGITS: logits, **{name.removesuffix(CODES): value for name, value in zip(names, values)}}

    return read


def torch_codes(model: nn.Module) -> Callable[[Tensor], Dict[str, np.ndarray]]:
    """Return a function that reads the activation codes of a quantised model, as :func:`onnx_codes` does of a file."""
    @torch.no_grad()
    def read(images: Tensor) -> Dict[str, np.ndarray]:
        codes: Dict[str, np.ndarray] = {}

        def hook(quantizer: Quantizer, x: Tensor, output: Tensor, slot: str) -> None:
            codes[slot] = quantizer.codes(x).cpu().numpy()

        with _watched(model, hook):
            codes[LOGITS] = model(images).float().cpu().numpy()
        return codes

    return read


@torch.no_grad()
def follow(model: nn.Module, images: Tensor, theirs: Dict[str, np.ndarray]) -> Tuple[Dict[str, np.ndarray], Tensor]:
    """Run a model on the codes of another network, and return how far its own lie from them, and its logits.

    Each slot passes on the other network's codes, so the next one has equal inputs: a flip has no consequences, and a
    layer that is another one cannot hide behind it.

    Args:
        model (nn.Module): the fake-quantised model.
        images (Tensor): preprocessed, (B, C, H, W).
        theirs (dict): ``MODULE.SLOT`` -> codes.

    Returns:
        tuple: slot -> absolute differences of the codes, in the order of the forward; logits.
    """
    differences: Dict[str, np.ndarray] = {}

    def hook(quantizer: Quantizer, x: Tensor, output: Tensor, slot: str) -> Optional[Tensor]:
        if slot not in theirs:
            raise QuantizationError(f'expected the codes of every activation, got none of {slot}')
        ours = quantizer.codes(x)
        codes, differences[slot] = _aligned(ours.cpu().numpy(), theirs[slot])
        if codes is None:
            return None
        codes = torch.from_numpy(codes.copy()).to(ours.device)
        return dequantize(codes, quantizer.current_scale(), quantizer.offset, quantizer.axis).to(output.dtype)

    with _watched(model, hook):
        return differences, model(images).float()


@contextmanager
def _watched(model: nn.Module, hook: Callable) -> Iterator[None]:
    """Let ``hook`` (quantizer, input, output, slot) see every activation, and replace it, while a model runs."""
    handles = [quantizer.register_forward_hook(lambda module, inputs, output, key=f'{name}.{slot}':
                                               hook(module, inputs[0], output, key))
               for name, _, slot, quantizer in iter_quantizers(model) if slot != 'weight']
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _aligned(ours: np.ndarray, theirs: np.ndarray) -> Tuple[Optional[np.ndarray], np.ndarray]:
    """Return another network's codes in the layout of ours, and how far ours lie from them.

    The file may hold them transposed, or with axes of length 1; or, where images become patches, in another order: then
    as None, and both sorted.
    """
    both = [theirs, np.swapaxes(theirs, -1, -2)] if theirs.ndim > 1 else [theirs]
    layouts = [codes.reshape(ours.shape) for codes in both if _long_axes(codes) == _long_axes(ours)]
    if not layouts:
        return None, np.abs(np.sort(ours, axis=None).astype(np.int16) - np.sort(theirs, axis=None))
    pairs = [(codes, np.abs(ours.astype(np.int16) - codes)) for codes in layouts]
    return min(pairs, key=lambda pair: np.count_nonzero(pair[1]))


def _long_axes(array: np.ndarray) -> List[int]:
    return [size for size in array.shape if size > 1]
