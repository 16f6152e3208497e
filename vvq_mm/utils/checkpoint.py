"""Checkpoints of tensors and builtins alone: reading them without running their code, and making them so."""
import re
import zipfile
from collections import OrderedDict, deque
from collections.abc import Mapping
from pathlib import Path
from typing import List, Optional, Union

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader

from vvq_mm.errors import CheckpointError

_BUILTINS = (bool, int, float, complex, str, bytes)
_ALLOWED = (torch.Tensor, torch.dtype, torch.device, torch.Size, type(None))
_FORBIDDEN = re.compile(r'(?:GLOBAL|unrecognized function|instance of class|class) (\S+?)(?: was not|,|\.?\s|$)')
_LEFT_OUT = object()
TRUSTED = 'trusted://'


def read_checkpoint(path: Union[str, Path], trust: bool = False) -> dict:
    """Read a checkpoint file to the CPU without running code from it.

    Args:
        path: a file on this machine.
        trust (bool): run the code that the file may contain. Defaults to False.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is damaged, or needs classes that are not allowed without ``trust``.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'expected a checkpoint at {path}, but there is no such file; check the path')
    try:
        return torch.load(path, map_location='cpu', weights_only=not trust, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises half a dozen kinds here, and users need one sentence
        forbidden = _forbidden_classes(path, str(error))
        if forbidden and not trust:
            raise CheckpointError(
                f'expected a checkpoint of tensors and builtins alone, but {path} needs {", ".join(forbidden)}, and '
                'loading that can run any code; if you trust where the file comes from, give `--trust-checkpoint` to '
                "tools/train.py or tools/test.py (in a config: load_from = 'trusted://PATH')") from None
        raise CheckpointError(
            f'expected a whole PyTorch checkpoint, but {path} ({path.stat().st_size} bytes) cannot be read: it is '
            f'truncated or not a checkpoint ({_first_line(error)}); copy or download it again') from error


def make_safe_copy(path: Union[str, Path], out: Union[str, Path]) -> List[str]:
    """Load a trusted checkpoint, code and all, and write what it holds as tensors and builtins.

    Returns:
        What could not be kept, one ``'key/key: class'`` each.
    """
    left_out: List[str] = []
    checkpoint = read_checkpoint(path, trust=True)
    torch.save(plain_checkpoint(checkpoint, left_out), out)
    return left_out


@CheckpointLoader.register_scheme(prefixes=TRUSTED)
def load_trusted(filename: str, map_location=None) -> dict:
    """Load ``trusted://PATH``, code and all, for a Runner; reduced to tensors and builtins on the CPU."""
    return plain_checkpoint(read_checkpoint(filename.removeprefix(TRUSTED), trust=True))


def plain_checkpoint(checkpoint: dict, left_out: Optional[List[str]] = None) -> dict:
    """Return ``checkpoint`` as tensors and builtins; what is neither is appended to ``left_out`` by its place."""
    checkpoint = checkpoint.copy() if isinstance(checkpoint, Mapping) else checkpoint
    if isinstance(checkpoint, Mapping) and 'message_hub' in checkpoint:
        checkpoint['message_hub'] = plain_message_hub(checkpoint['message_hub'])
    return to_plain(checkpoint, 'checkpoint', [] if left_out is None else left_out)


def plain_message_hub(state) -> dict:
    """Return MMEngine's ``message_hub.state_dict()`` with every ``HistoryBuffer`` as a dict of tensors.

    >>> loss = HistoryBuffer([2., 1.], [1, 1])
    >>> state = dict(log_scalars=dict(loss=loss), runtime_info={}, resumed_keys=dict(loss=True))
    >>> plain_message_hub(state)['log_scalars']['loss']['values']
    tensor([2., 1.], dtype=torch.float64)
    """
    if not isinstance(state, Mapping):  # early MMEngine pickled the hub itself
        state = {name: getattr(state, f'_{name}') for name in ('log_scalars', 'runtime_info', 'resumed_keys')}
    scalars = {name: _plain_history(value) if isinstance(value, HistoryBuffer) else value
               for name, value in state['log_scalars'].items()}
    return dict(state, log_scalars=scalars)


def restore_message_hub(plain: Mapping) -> dict:
    """Undo :func:`plain_message_hub`; a state that is not plain is returned as it is."""
    scalars = {name: _history(value) if isinstance(value, Mapping) and 'max_length' in value else value
               for name, value in plain['log_scalars'].items()}
    return dict(plain, log_scalars=scalars)


def to_plain(value, where: str, left_out: List[str]):
    """Return ``value`` with NumPy, paths and subclasses of builtins replaced; see :func:`plain_checkpoint`."""
    if isinstance(value, _ALLOWED):
        return value
    if isinstance(value, np.generic):
        return to_plain(value.item(), where, left_out)
    if isinstance(value, np.ndarray):
        numeric = value.dtype.kind in 'biufc'
        return torch.from_numpy(value.copy()) if numeric else to_plain(value.tolist(), where, left_out)
    if isinstance(value, _BUILTINS):
        return next(kind(value) for kind in _BUILTINS if isinstance(value, kind))
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return _plain_mapping(value, where, left_out)
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        kind = tuple if isinstance(value, tuple) else list
        items = [to_plain(item, f'{where}[{index}]', left_out) for index, item in enumerate(value)]
        return kind(None if item is _LEFT_OUT else item for item in items)
    left_out.append(f'{where}: {type(value).__module__}.{type(value).__qualname__}')
    return _LEFT_OUT


def _plain_mapping(value: Mapping, where: str, left_out: List[str]) -> dict:
    plain = OrderedDict() if isinstance(value, OrderedDict) else {}
    for key, item in value.items():
        key, item = to_plain(key, where, left_out), to_plain(item, f'{where}/{key}', left_out)
        if key is not _LEFT_OUT and item is not _LEFT_OUT:
            plain[key] = item
    if isinstance(value, OrderedDict) and hasattr(value, '_metadata'):  # of a state dict: its modules' versions
        plain._metadata = to_plain(value._metadata, f'{where}._metadata', left_out)
    return plain


def _plain_history(buffer: HistoryBuffer) -> dict:
    values, counts = (torch.from_numpy(np.array(array)) for array in buffer.data)
    return dict(values=values, counts=counts, max_length=buffer.max_length)


def _history(plain: Mapping) -> HistoryBuffer:
    return HistoryBuffer(plain['values'].cpu().numpy(), plain['counts'].cpu().numpy(), plain['max_length'])


def _forbidden_classes(path: Path, message: str) -> List[str]:
    """Return the classes a file needs beyond tensors and builtins, without loading it."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not a zip file, or a damaged one: what torch said is all there is
        names = []
    return names or sorted(set(_FORBIDDEN.findall(message)))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
