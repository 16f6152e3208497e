"""Is the exported file the same network? Logits and codes of both, on the same images."""
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable, Dict, Iterable, Iterator, List, Optional

import numpy as np
import torch
from torch import Tensor, nn

from vvq_mm.errors import QuantizationError
from vvq_mm.surgery import iter_quantizers

from .onnx_activation import CODES
from .optional import require

MIN_AGREEMENT = 99.5  # % of the images with the same most probable class
# Two computations of the same float differ in its last bits, so a code whose value lies on a border of two bins may
# differ by one. Between equal inputs that is this rare; what follows from it later in the network may be more.
MAX_BORDER_SHARE = 1e-3
CODE_BATCHES = 4  # whose codes are compared: reading them takes a second run of both networks


@dataclass
class Parity:
    """How an exported file differs from the fake-quantised model.

    Args:
        images (int): compared.
        agreement (float): share of images with the same most probable class, in %.
        max_difference, mean_difference (float): of the logits, absolute.
        spread (float): standard deviation of the model's logits, for comparison.
        codes (int): activation codes compared, of the first four batches; 0 where they cannot be read.
        differing_codes (int): of these, how many differ.
        model_accuracy, accuracy (float, optional): top-1 of model and file on these images, in %, if they have labels.
        first (dict, optional): of the first slot with a difference: ``slot``, ``share`` and ``largest`` difference.
        worst (dict, optional): of the first slot with more differences than bin borders explain between equal inputs.
    """

    images: int
    agreement: float
    max_difference: float
    mean_difference: float
    spread: float
    codes: int = 0
    differing_codes: int = 0
    model_accuracy: Optional[float] = None
    accuracy: Optional[float] = None
    first: Optional[dict] = None
    worst: Optional[dict] = None

    def asdict(self) -> dict:
        return asdict(self)


def compare(model: nn.Module, exported: Callable[[Tensor], Tensor], batches: Iterable[Tensor],
            read_codes: Optional[Callable[[Tensor], Dict[str, np.ndarray]]] = None,
            labels: Optional[Tensor] = None) -> Parity:
    """Return how an exported network differs from the model.

    Args:
        model (nn.Module): the fake-quantised model.
        exported (callable): images -> logits.
        batches (iterable of Tensor): preprocessed images (B, C, H, W).
        read_codes (callable, optional): images -> ``MODULE.SLOT`` -> codes of the exported network. Defaults to none.
        labels (Tensor, optional): the class of each image. Defaults to none.
    """
    ours, theirs, order, total, differing, largest = [], [], [], {}, {}, {}
    for number, images in enumerate(batches):
        reads = read_codes is not None and number < CODE_BATCHES
        with torch.no_grad(), record_codes(model) if reads else nullcontext({}) as codes:
            ours.append(model(images).float())
        theirs.append(exported(images).float())
        order = order or list(codes)
        for slot, other in (read_codes(images) if reads else {}).items():
            difference = _difference(codes[slot].cpu().numpy(), other)
            total[slot] = total.get(slot, 0) + difference.size
            differing[slot] = differing.get(slot, 0) + int(np.count_nonzero(difference))
            largest[slot] = max(largest.get(slot, 0), int(difference.max(initial=0)))
    ours, theirs = torch.cat(ours), torch.cat(theirs)
    difference = (ours - theirs).abs()
    slots = [dict(slot=slot, share=differing[slot] / total[slot], largest=largest[slot])
             for slot in order if slot in total]  # in the order of the forward
    return Parity(
        len(ours), _share(ours, theirs.argmax(1)), difference.max().item(), difference.mean().item(),
        ours.std().item(), sum(total.values()), sum(differing.values()),
        None if labels is None else _share(ours, labels), None if labels is None else _share(theirs, labels),
        next((slot for slot in slots if slot['share']), None),
        next((slot for slot in slots if slot['share'] > MAX_BORDER_SHARE or slot['largest'] > 1), None))


def _share(logits: Tensor, classes: Tensor) -> float:
    """Return on how many images the most probable class is the given one, in %."""
    return 100 * (logits.argmax(1) == classes).double().mean().item()


def check_parity(parity: Parity, where: str, real_images: bool = True) -> None:
    """Raise if a file differs by more than rounding at bin borders explains.

    The first slot that differs had equal inputs: at most 0.1 % of its codes may differ, by one. The most probable class
    must be the same on at least 99.5 % of the images, if these are images and not noise.

    Raises:
        QuantizationError: names the first layer where the codes differ by more.
    """
    first, worst = parity.first, parity.worst
    if first is not None and (first['share'] > MAX_BORDER_SHARE or first['largest'] > 1):
        raise QuantizationError(f'expected {where} to be the trained network, but its codes differ from {first["slot"]} '
                                f'on: {first["share"]:.2%} of them there, by up to {first["largest"]}; rounding at bin '
                                f'borders explains {MAX_BORDER_SHARE:.1%} and 1. This is a defect: please report it')
    if real_images and parity.agreement < MIN_AGREEMENT:
        place = f'the first layer with many differing codes is {worst["slot"]} ({worst["share"]:.2%})' if worst else \
            'its codes cannot be read' if not parity.codes else 'its codes agree'
        raise QuantizationError(f'expected the same most probable class on at least {MIN_AGREEMENT} % of '
                                f'{parity.images} images, got {parity.agreement:.2f} % with {where}; {place}')


@contextmanager
def record_codes(model: nn.Module) -> Iterator[Dict[str, Tensor]]:
    """Collect the codes of every activation while a model runs, ``MODULE.SLOT`` -> codes, in the order of the forward.

    Example:
        >>> with record_codes(model) as codes:
        ...     logits = model(images)
        >>> codes['backbone.layers.0.attn.query'].dtype
        torch.int8
    """
    codes: Dict[str, Tensor] = {}

    def hook(key: str) -> Callable:
        def record(quantizer, inputs, output):
            codes[key] = quantizer.codes(inputs[0])
        return record

    handles = [quantizer.register_forward_hook(hook(f'{name}.{slot}'))
               for name, _, slot, quantizer in iter_quantizers(model) if slot != 'weight']
    try:
        yield codes
    finally:
        for handle in handles:
            handle.remove()


def onnx_codes(path: Path) -> Callable[[Tensor], Dict[str, np.ndarray]]:
    """Return a function that reads the activation codes of an ONNX file: images -> ``MODULE.SLOT`` -> codes."""
    onnx, onnxruntime = require('onnx'), require('onnxruntime')
    model = onnx.load(path)
    names: List[str] = [node.output[0] for node in model.graph.node if node.op_type == 'QuantizeLinear']
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])

    def read(images: Tensor) -> Dict[str, np.ndarray]:
        values = session.run(names, {session.get_inputs()[0].name: images.numpy()})
        return {name.removesuffix(CODES): value for name, value in zip(names, values)}

    return read


def torch_codes(model: nn.Module) -> Callable[[Tensor], Dict[str, np.ndarray]]:
    """Return a function that reads the activation codes of a quantised model, as :func:`onnx_codes` does of a file."""
    def read(images: Tensor) -> Dict[str, np.ndarray]:
        with record_codes(model) as codes, torch.no_grad():
            model(images)
        return {slot: value.cpu().numpy() for slot, value in codes.items()}

    return read


def _difference(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return how far codes lie apart. The file may hold them transposed, or, where images become patches, reordered."""
    ours, theirs = ours.astype(np.int16), theirs.astype(np.int16)
    layouts = [ours] if ours.shape == theirs.shape else []
    if ours.ndim > 1 and np.swapaxes(ours, -1, -2).shape == theirs.shape:
        layouts.append(np.swapaxes(ours, -1, -2))
    if not layouts:
        ours, theirs = np.sort(ours, axis=None), np.sort(theirs, axis=None)
        layouts = [ours]
    return min((np.abs(layout - theirs) for layout in layouts), key=np.count_nonzero)
