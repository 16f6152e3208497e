"""The packed format: codes at their true width, scales, the float rest and a description in one file.

docs/packed_format.md is the specification.
"""
import json
import zlib
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from vvq_mm.errors import CheckpointError, QuantizationError
from vvq_mm.functional.fake_quant import dequantize
from vvq_mm.functional.packing import pack_codes, unpack_codes
from vvq_mm.quantizers import Quantizer
from vvq_mm.surgery import iter_quantizers

from .checks import check_exportable
from .container import Container, read_container
from .description import build_described, check_version
from .files import whole_file

CODES = '.codes'  # suffix of the name of a weight
SCALES, OFFSETS, CLASSES = 'scales', 'offsets', 'classes'
_DERIVED = '.relative_position_index'  # of window attentions: it follows from the size of the window


class Packed(NamedTuple):
    """What a packed file holds.

    Args:
        description (dict): see :mod:`vvq_mm.export.description`.
        weights (dict): name of a quantised weight -> [shape, bits, signed].
        tensors (dict): name -> tensor as it is stored.
    """

    description: dict
    weights: Dict[str, list]
    tensors: Dict[str, Tensor]

    def codes(self, name: str) -> Tensor:
        """Return the codes of the weight ``name`` in its shape, int8 (uint8 for 8 unsigned bits)."""
        shape, bits, signed = self.weights[name]
        return unpack_codes(self.tensors[name + CODES], bits, signed, torch.Size(shape).numel()).view(shape)


def save_packed(model: nn.Module, path: Union[str, Path], description: Optional[dict] = None) -> None:
    """Write a quantised model into one file, which replaces ``path`` once it is complete.

    Args:
        model (nn.Module): ready to be exported.
        path (str | Path): the file.
        description (dict, optional): of :func:`vvq_mm.export.description.describe`. Defaults to
            ``model.description``, which :func:`load` sets.

    Raises:
        QuantizationError: a model that cannot be exported.

    Example:
        >>> save_packed(model, 'vit_w2a2.safetensors', describe(cfg, model, (3, 224, 224)))
    """
    check_exportable(model)
    description = dict(description or model.description)
    parts = _Parts(model)
    weights = {name: [list(module.weight.shape), quantizer.bits, quantizer.signed]
               for name, (module, quantizer) in parts.weights.items()}
    tensors = {name + CODES: pack_codes(quantizer.codes(module.weight), quantizer.bits)
               for name, (module, quantizer) in parts.weights.items()}
    tensors.update(parts.rest)
    tensors.update({SCALES: _joined(parts.scales), OFFSETS: _joined(parts.offsets)})
    classes = description.pop('classes')
    if classes is not None:
        tensors[CLASSES] = torch.frombuffer(bytearray(zlib.compress(_to_json(classes).encode(), 9)), dtype=torch.uint8)
    tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    with whole_file(path) as beside:
        beside.write_bytes(Container(_to_json(dict(description, weights=weights)), tensors).to_bytes())


def read_packed(path: Union[str, Path]) -> Packed:
    """Read and check a packed file without building its model.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: another kind of file, a truncated or altered one, or another version of the format.
    """
    path = Path(path).expanduser()
    text, tensors = read_container(path)
    description = json.loads(text)
    try:
        check_version(description)
    except QuantizationError as error:
        raise CheckpointError(f'expected a packed file of this version, but of {path}: {error}') from error
    weights, classes = description.pop('weights'), tensors.pop(CLASSES, None)
    names = None if classes is None else json.loads(zlib.decompress(classes.numpy().tobytes()))
    return Packed(dict(description, classes=names), weights, tensors)


def load(path: Union[str, Path]) -> nn.Module:
    """Return the quantised model of a packed file, ready, on the CPU and in eval mode.

    Its latent weights are the dequantised codes, so it gives the logits of the model that was saved, bit by bit; none
    is frozen. Nothing in the file is run. ``model.description`` says what it is.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: another kind of file, a truncated or altered one, another version of the format, or a model
            that cannot be built here.

    Example:
        >>> model = load('vit_w2a2.safetensors')
        >>> model(torch.zeros(1, *model.description['input_shape'])).shape
        torch.Size([1, 1000])
    """
    packed = read_packed(path)
    try:
        model = build_described(packed.description)
        _fill(model, packed)
    except QuantizationError as error:
        raise CheckpointError(f'expected the model of {path} to be built here, it cannot: {error}') from error
    model.description = packed.description
    return model


class _Parts:
    """A quantised model's state, taken apart as it is stored.

    Attributes:
        weights (dict): name -> (module, quantizer) of every quantised weight.
        scales, offsets (list of Tensor): of all quantizers, in the order of ``MODULE.SLOT``.
        rest (dict): name -> tensor, everything else that building the model does not give.
    """

    def __init__(self, model: nn.Module) -> None:
        slots = sorted(iter_quantizers(model), key=lambda item: f'{item[0]}.{item[2]}'.encode())
        self.quantizers: List[Quantizer] = [quantizer for *_, quantizer in slots]
        self.weights = {f'{name}.weight': (module, quantizer) for name, module, slot, quantizer in slots
                        if slot == 'weight'}
        self.scales = [quantizer.scale for quantizer in self.quantizers]
        self.offsets = [quantizer.offset for quantizer in self.quantizers if quantizer.offset is not None]
        self.rest: Dict[str, Tensor] = {}
        latent = {id(module.weight): name for name, (module, _) in self.weights.items()}
        known = {id(getattr(quantizer, name)) for quantizer in self.quantizers
                 for name in ('scale', 'offset', 'code_range', 'initialized', 'frozen')}
        for name, tensor in _state(model):
            if latent.get(id(tensor), name) != name:
                raise QuantizationError(f'expected each quantised weight in one place, got {name}, which is '
                                        f'{latent[id(tensor)]} too; leave both in float with a rule')
            if id(tensor) not in {*latent, *known} and not name.endswith(_DERIVED):
                self.rest[name] = tensor
                known.add(id(tensor))  # shared: stored under its first name


def _state(model: nn.Module) -> Iterator[Tuple[str, Tensor]]:
    """Yield (name, tensor) of all parameters and persistent buffers, by the names of the modules."""
    for prefix, module in model.named_modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield f'{prefix}.{name}' if prefix else name, tensor


@torch.no_grad()
def _fill(model: nn.Module, packed: Packed) -> None:
    """Give a freshly built model what the file holds."""
    parts, stored = _Parts(model), packed.tensors
    expected = {*parts.rest, *(name + CODES for name in parts.weights), SCALES, OFFSETS}
    if stored.keys() != expected:
        names = sorted(stored.keys() ^ expected)
        raise QuantizationError(f'expected its tensors to be those of its description, {len(names)} differ '
                                f'({", ".join(names[:3])}); install the versions that it was exported with')
    for name, tensor in parts.rest.items():
        _copy(stored[name], tensor, name)
    for key, parameters in {SCALES: parts.scales, OFFSETS: parts.offsets}.items():
        _copy(stored[key], torch.empty(sum(map(len, parameters))), key)
        for parameter, values in zip(parameters, stored[key].split([len(parameter) for parameter in parameters])):
            parameter.copy_(values)
    for quantizer in parts.quantizers:
        quantizer.initialized.fill_(1)
        quantizer.ready = True
    for name, (module, quantizer) in parts.weights.items():
        codes = packed.codes(name).float()
        latent = dequantize(codes, quantizer.current_scale(), quantizer.offset, quantizer.axis)
        _copy(latent, module.weight, name)


def _copy(source: Tensor, target: Tensor, name: str) -> None:
    if (source.shape, source.dtype) != (target.shape, target.dtype):
        raise QuantizationError(f'expected {name} to be {tuple(target.shape)} {target.dtype}, got '
                                f'{tuple(source.shape)} {source.dtype}; install the versions that it was exported with')
    target.copy_(source)


def _joined(parameters: List[Tensor]) -> Tensor:
    return torch.cat(parameters) if parameters else torch.zeros(0)


def _to_json(value) -> str:
    return json.dumps(value, separators=(',', ':'), ensure_ascii=False)
