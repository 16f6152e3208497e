"""The container of packed files: safetensors, plus a checksum over every byte; docs/packed_format.md specifies it.

It is written here since the safetensors library puts metadata in a random order, and equal models shall give equal
files; it is read by that library once the checksum fits.
"""
import hashlib
import json
from pathlib import Path
from typing import Dict, NamedTuple

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from vvq_mm.errors import CheckpointError

TEXT, DIGEST = 'vvq_mm', 'sha256'  # the keys of the metadata
_NO_DIGEST = '0' * 64  # what the checksum is taken over, in its own place
_DTYPES = {torch.float64: 'F64', torch.int64: 'I64', torch.float32: 'F32', torch.int32: 'I32', torch.float16: 'F16',
           torch.bfloat16: 'BF16', torch.int16: 'I16', torch.int8: 'I8', torch.uint8: 'U8', torch.bool: 'BOOL'}
_AGAIN = 'copy it again, or export the model again'


class Container(NamedTuple):
    """What a file holds.

    Args:
        text (str): the metadata of this package.
        tensors (dict): name -> tensor on the CPU.
    """

    text: str
    tensors: Dict[str, Tensor]

    def to_bytes(self) -> bytes:
        """Return the file, the same for the same content."""
        header = {'__metadata__': {DIGEST: _NO_DIGEST, TEXT: self.text}}
        parts, end = [], 0
        for name in sorted(self.tensors, key=lambda name: (-self.tensors[name].element_size(), name)):  # aligned
            tensor = self.tensors[name]
            parts.append(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
            begin, end = end, end + len(parts[-1])
            header[name] = dict(dtype=_DTYPES[tensor.dtype], shape=list(tensor.shape), data_offsets=[begin, end])
        head = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
        head += b' ' * (-len(head) % 8)
        data = b''.join([len(head).to_bytes(8, 'little'), head, *parts])
        return data.replace(_NO_DIGEST.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def read_container(path: Path) -> Container:
    """Read a file and check its length and checksum.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: another kind of file, a truncated or altered one.
    """
    if not path.is_file():
        raise FileNotFoundError(f'expected a packed file at {path}, but there is no such file; check the path')
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], 'little')
    try:
        header = json.loads(data[8:start])
        metadata = header.pop('__metadata__', {})
        length = start + max((entry['data_offsets'][1] for entry in header.values()), default=0)
        ours = metadata.keys() & {TEXT, DIGEST}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f'expected a packed file, but {path} ({len(data)} bytes) has no header that can be read: '
                              f'it is truncated, altered or of another kind; {_AGAIN}') from error
    if not ours:
        raise CheckpointError(f'expected a packed file, but {path} is a safetensors file that vvq_mm did not write; '
                              'give one that tools/export.py made')
    if length != len(data):
        raise CheckpointError(f'expected {length} bytes in {path}, got {len(data)}: it is truncated or altered; '
                              f'{_AGAIN}')
    if len(ours) < 2 or not _fits(data, start, metadata[DIGEST]):
        raise CheckpointError(f'expected the content of {path} to fit its checksum, it does not: the file was altered; '
                              f'{_AGAIN}')
    return Container(metadata[TEXT], load_tensors(data))


def _fits(data: bytes, start: int, digest: str) -> bool:
    """Return whether ``digest`` is the checksum of ``data`` with zeros in the place of the checksum in the header."""
    place = data.find(f'"{DIGEST}":"{digest}"'.encode(), 8, start) + len(f'"{DIGEST}":"')
    blank = hashlib.sha256(data[:place])
    blank.update(_NO_DIGEST.encode())
    blank.update(data[place + len(_NO_DIGEST):])
    return blank.hexdigest() == digest
