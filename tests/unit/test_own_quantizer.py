"""The README's example of a quantiser of one's own keeps the contract of all quantisers."""
import torch
from test_quantizers import QuantizerContract

from vvq_mm.quantizers import LSQQuantizer


class PowerOfTwoQuantizer(LSQQuantizer):
    """A learned scale, rounded to a power of two."""

    def current_scale(self):
        scale = self.scale.clamp_min(1e-5)
        return scale * (2**scale.log2().round() / scale).detach()


class TestPowerOfTwo(QuantizerContract):

    def make(self, bits=4, **options):
        return PowerOfTwoQuantizer(bits=bits, **options)

    def test_every_scale_is_a_power_of_two(self):
        exponents = self.ready(groups=3).effective_scale().log2()
        torch.testing.assert_close(exponents, exponents.round())
