"""Packing: integer codes of 2 to 8 bits as one stream of bits, least significant bit first.

Bit ``j`` of code ``i`` is bit ``(i * bits + j) % 8`` of byte ``(i * bits + j) // 8``. A code is cut to its lowest
``bits`` bits (two's complement); the last byte is filled with zeros. Eight codes fill ``bits`` whole bytes, so both
directions work on rows of eight.
"""
import torch
from torch import Tensor

from vvq_mm.errors import QuantizationError

from .grid import IntGrid

CHUNK = 1 << 20  # codes at a time, a multiple of 8: each passes through an int64


def packed_size(count: int, bits: int) -> int:
    """Return the number of bytes that ``count`` codes of ``bits`` bits need.

    Example:
        >>> packed_size(3, bits=3)
        2
    """
    return -(-count * bits // 8)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Return ``codes`` as a stream of bits, in row-major order.

    Args:
        codes (Tensor): any shape, int8 or uint8.
        bits (int): width of a code, 2 to 8.

    Returns:
        Tensor: (ceil(n * bits / 8),) uint8.

    Raises:
        QuantizationError: another dtype, or codes that are wider.

    Example:
        >>> pack_codes(torch.tensor([1, -2, 0, -1, 1], dtype=torch.int8), bits=2)  # 01, 10, 00, 11; 01
        tensor([201,   1], dtype=torch.uint8)
    """
    IntGrid.of(bits, True, 'pack_codes')
    if codes.dtype not in (torch.int8, torch.uint8):
        raise QuantizationError(f'expected int8 or uint8 codes to pack, got {codes.dtype}')
    codes = codes.reshape(-1)
    if codes.numel() and not -2**(bits - 1) <= int(codes.min()) <= int(codes.max()) < 2**bits:
        raise QuantizationError(f'expected codes of {bits} bits to pack, got {int(codes.min())} to {int(codes.max())}')
    bytes_ = codes.view(torch.uint8)
    if bits == 8:
        return bytes_.clone()
    parts = [_pack(chunk, bits) for chunk in bytes_.split(CHUNK)]
    return torch.cat(parts)[:packed_size(codes.numel(), bits)]


def _pack(codes: Tensor, bits: int) -> Tensor:
    """Return (ceil(n / 8) * bits,) bytes of (n,) codes as uint8."""
    eights = _rows(codes, 8)
    word = torch.zeros(len(eights), dtype=torch.int64, device=codes.device)
    for place in range(8):
        word |= (eights[:, place].long() & (2**bits - 1)) << (place * bits)
    return torch.stack([(word >> (8 * byte)) & 255 for byte in range(bits)], 1).to(torch.uint8).reshape(-1)


def unpack_codes(data: Tensor, bits: int, signed: bool, count: int) -> Tensor:
    """Return the codes of a stream of bits; undoes :func:`pack_codes`.

    Args:
        data (Tensor): (ceil(count * bits / 8),) uint8.
        bits (int): width of a code, 2 to 8.
        signed (bool): whether codes are in two's complement.
        count (int): number of codes.

    Returns:
        Tensor: (count,) int8; uint8 for 8 unsigned bits.

    Raises:
        QuantizationError: another dtype or length.

    Example:
        >>> unpack_codes(torch.tensor([201, 1], dtype=torch.uint8), bits=2, signed=True, count=5)
        tensor([ 1, -2,  0, -1,  1], dtype=torch.int8)
    """
    grid = IntGrid.of(bits, signed, 'unpack_codes')
    if data.dtype != torch.uint8 or data.shape != (packed_size(count, bits), ):
        raise QuantizationError(f'expected ({packed_size(count, bits)},) uint8 for {count} codes of {bits} bits, got '
                                f'{tuple(data.shape)} {data.dtype}')
    if bits == 8:
        return data.view(torch.int8 if signed else torch.uint8).clone()
    parts = [_unpack(chunk, grid) for chunk in data.split(CHUNK // 8 * bits)]
    return torch.cat(parts)[:count]


def _unpack(data: Tensor, grid: IntGrid) -> Tensor:
    """Return the int8 codes of whole bytes, eight for each row of ``bits`` bytes."""
    rows = _rows(data, grid.bits)
    word = torch.zeros(len(rows), dtype=torch.int64, device=data.device)
    for byte in range(grid.bits):
        word |= rows[:, byte].long() << (8 * byte)
    codes = [(word >> (place * grid.bits)) & (2**grid.bits - 1) for place in range(8)]
    sign = -grid.qmin  # the value of the sign bit, or 0: x ^ s - s extends it
    return torch.stack([(code ^ sign) - sign for code in codes], 1).to(torch.int8).reshape(-1)


def _rows(values: Tensor, length: int) -> Tensor:
    """Return (n,) values as rows of ``length``, filled with zeros at the end."""
    return torch.nn.functional.pad(values, (0, -len(values) % length)).view(-1, length)
