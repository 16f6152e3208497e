"""The integer grid of a quantizer: the only place that knows how bits and sign become limits."""
from typing import NamedTuple

from vvq_mm.errors import QuantizationError

MIN_BITS, MAX_BITS = 2, 8


class IntGrid(NamedTuple):
    """Smallest and largest integer code of a ``bits``-bit grid.

    Args:
        qmin (int): smallest code.
        qmax (int): largest code.

    Example:
        >>> IntGrid.of(bits=4, signed=True)
        IntGrid(qmin=-8, qmax=7)
        >>> IntGrid.of(bits=2, signed=False).levels
        4
    """

    qmin: int
    qmax: int

    @classmethod
    def of(cls, bits: int, signed: bool, where: str = 'a quantizer') -> 'IntGrid':
        """Return the two's-complement grid (signed) or ``0 .. 2**bits - 1`` (unsigned).

        Args:
            bits (int): width, 2 to 8.
            signed (bool): whether codes may be negative.
            where (str): named in the error.

        Raises:
            QuantizationError: ``bits`` is not an integer from 2 to 8.
        """
        if isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
            raise QuantizationError(f'expected bits to be an integer from {MIN_BITS} to {MAX_BITS}, got {bits!r} for '
                                    f'{where}; to leave a slot in float, set it to None')
        return cls(-2**(bits - 1), 2**(bits - 1) - 1) if signed else cls(0, 2**bits - 1)

    @property
    def levels(self) -> int:
        """Number of codes."""
        return self.qmax - self.qmin + 1

    @property
    def bits(self) -> int:
        """Width of the codes."""
        return (self.levels - 1).bit_length()

    def __str__(self) -> str:
        return f'{self.bits} {"signed" if self.qmin else "unsigned"}'
