"""The full-precision network of an exported model, as the files that full-precision rows run."""
import json
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from mmpretrain.registry import MODELS
from torch import nn

from vvq_mm.errors import QuantizationError
from vvq_mm.export.description import build_described
from vvq_mm.export.onnx_export import DEFAULT_OPSET, KEY, export_float_onnx
from vvq_mm.export.optional import require
from vvq_mm.export.packed import load, read_packed
from vvq_mm.export.runtimes import file_kind
from vvq_mm.surgery import unquantize_
from vvq_mm.utils.teacher import load_weights

OPSETS = (21, DEFAULT_OPSET)  # attention is written out in the first and one operator from 23 on
SAME = ('model', 'plan', 'num_classes', 'input_shape')  # in the descriptions of two files of one model


class FloatFiles(NamedTuple):
    """The full-precision network on disk.

    Args:
        checkpoint (Path): of PyTorch; :func:`load_float` reads it.
        onnx (dict): opset -> ONNX file.
        skipped (dict): opset -> why there is no ONNX file.
    """

    checkpoint: Path
    onnx: Dict[int, Path]
    skipped: Dict[int, str]


def sort_files(files: Sequence[Union[str, Path]]) -> Tuple[List[Path], List[Path], dict]:
    """Return the packed files, the ONNX files, and the description of the one model they hold.

    Raises:
        FileNotFoundError: no such file.
        QuantizationError: a file of another kind or without a description, or files of different models.
    """
    kinds, descriptions = {}, {}
    for path in map(Path, files):
        kinds[path] = file_kind(path)
        if kinds[path] not in ('a packed file', 'an ONNX file'):
            raise QuantizationError(f'expected packed and ONNX files of tools/export.py, got {kinds[path]} at {path}')
        descriptions[path] = read_packed(path).description if kinds[path] == 'a packed file' else _of_onnx(path)
    first = next(iter(descriptions))
    for path, description in descriptions.items():
        other = [key for key in SAME if description.get(key) != descriptions[first].get(key)]
        if other:
            raise QuantizationError(f'expected files of one model, got another {" and ".join(other)} in {path} than in '
                                    f'{first}; measure them one after the other')
    packed, onnx = ([path for path, kind in kinds.items() if kind == wanted]
                    for wanted in ('a packed file', 'an ONNX file'))
    return packed, onnx, descriptions[first]


def write_float(description: dict, folder: Path, packed: Optional[Path] = None, checkpoint: Optional[str] = None,
                opsets: Sequence[int] = OPSETS) -> FloatFiles:
    """Write the full-precision network of a description into ``folder``.

    Args:
        description (dict): of an exported file.
        folder (Path): an existing one.
        packed (Path, optional): whose dequantised weights the network gets. Defaults to random weights, which are as
            fast.
        checkpoint (str, optional): full-precision weights, which go before those of ``packed``.
        opsets (sequence of int): of the ONNX files. Defaults to ``OPSETS``.

    Raises:
        CheckpointError: the checkpoint is that of another model.
    """
    model = load(packed) if packed is not None else build_described(description)
    unquantize_(model)
    if checkpoint is not None:
        load_weights(model, checkpoint)
    files = FloatFiles(folder / 'float.pth', {}, {})
    torch.save(dict(description=json.dumps(description), state_dict=model.state_dict()), files.checkpoint)
    for opset in opsets:
        path = folder / f'float_opset{opset}.onnx'
        try:
            export_float_onnx(model, path, description, opset)
            files.onnx[opset] = path
        except QuantizationError as error:
            files.skipped[opset] = str(error)
    return files


def load_float(path: Union[str, Path]) -> nn.Module:
    """Return the network of ``FloatFiles.checkpoint`` in eval mode; without a quantised one in between."""
    stored = torch.load(path, weights_only=True, mmap=True)
    config = dict(json.loads(stored['description'])['model'], _scope_='vvq_mm')
    config.pop('policy', None)
    model = MODELS.build(config)
    model.load_state_dict(stored['state_dict'], assign=True)
    model.eval()  # not chained: some of MMPretrain's train() return None
    return model.requires_grad_(False)


def _of_onnx(path: Path) -> dict:
    model = require('onnx').load(str(path))
    text = next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
    if text is None:
        raise QuantizationError(f'expected a file that says what its network is, got {path} without a description; '
                                'export it with tools/export.py')
    return json.loads(text)
