"""Packed codes: one stream of bits, least significant first, for every width, sign and length."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vvq_mm.errors import QuantizationError
from vvq_mm.functional import packing
from vvq_mm.functional.grid import IntGrid
from vvq_mm.functional.packing import pack_codes, packed_size, unpack_codes

WIDTHS = [(bits, signed) for bits in range(2, 9) for signed in (True, False)]
each_width = pytest.mark.parametrize('bits, signed', WIDTHS,
                                     ids=[f'{bits}_{"signed" if signed else "unsigned"}' for bits, signed in WIDTHS])


def reference(codes, bits):
    """Set every bit of every code at its place, one by one."""
    data = [0] * -(-len(codes) * bits // 8)
    for i, code in enumerate(codes):
        for j in range(bits):
            place = i * bits + j
            data[place // 8] |= (code >> j & 1) << place % 8
    return data


def dtype(bits, signed):
    return torch.uint8 if bits == 8 and not signed else torch.int8


def random_codes(bits, signed, count):
    grid = IntGrid.of(bits, signed)
    return torch.randint(grid.qmin, grid.qmax + 1, (count, )).to(dtype(bits, signed))


@st.composite
def code_lists(draw):
    bits, signed = draw(st.sampled_from(WIDTHS))
    grid = IntGrid.of(bits, signed)
    return bits, signed, draw(st.lists(st.integers(grid.qmin, grid.qmax), max_size=40))


@given(code_lists())
def test_every_bit_is_at_its_place_and_codes_come_back(drawn):
    bits, signed, codes = drawn
    tensor = torch.tensor(codes, dtype=dtype(bits, signed))
    data = pack_codes(tensor, bits)
    assert data.dtype == torch.uint8 and data.tolist() == reference(codes, bits)
    again = unpack_codes(data, bits, signed, len(codes))
    assert again.dtype == tensor.dtype and torch.equal(again, tensor)


@each_width
def test_chunks_join_without_a_seam(bits, signed, monkeypatch):
    codes = random_codes(bits, signed, 1003)
    whole = pack_codes(codes, bits)
    monkeypatch.setattr(packing, 'CHUNK', 16)
    assert torch.equal(pack_codes(codes, bits), whole)
    assert torch.equal(unpack_codes(whole, bits, signed, 1003), codes)


def test_a_matrix_is_packed_row_by_row():
    codes = torch.tensor([[1, -2], [0, -1]], dtype=torch.int8)
    assert pack_codes(codes, 2).tolist() == [0b11001001]
    assert pack_codes(codes.T, 2).tolist() == [0b11100001]


def test_the_last_byte_is_filled_with_zeros():
    assert pack_codes(torch.tensor([-1], dtype=torch.int8), 3).tolist() == [0b111]


def test_packing_leaves_its_input_alone():
    codes = random_codes(8, True, 9)
    pack_codes(codes, 8).zero_()
    assert codes.any()


@each_width
def test_size_is_the_number_of_bits_rounded_up(bits, signed):
    for count in (0, 1, 7, 8, 9):
        size = -(-count * bits // 8)
        assert packed_size(count, bits) == size == len(pack_codes(random_codes(bits, signed, count), bits))


@pytest.mark.parametrize('codes', [[-9], [16]], ids=['below', 'above'])
def test_codes_that_are_wider_are_refused(codes):
    with pytest.raises(QuantizationError, match='expected codes of 4 bits'):
        pack_codes(torch.tensor(codes, dtype=torch.int8), 4)


@pytest.mark.parametrize('bits', [1, 9, 4.0], ids=str)
def test_other_widths_are_refused(bits):
    with pytest.raises(QuantizationError, match='from 2 to 8'):
        pack_codes(torch.zeros(1, dtype=torch.int8), bits)


def test_floats_are_refused():
    with pytest.raises(QuantizationError, match='expected int8 or uint8'):
        pack_codes(torch.zeros(1), 4)


def test_a_stream_of_another_length_is_refused():
    with pytest.raises(QuantizationError, match=r'expected \(4,\) uint8 for 9 codes of 3 bits, got \(3,\)'):
        unpack_codes(torch.zeros(3, dtype=torch.uint8), 3, True, 9)
