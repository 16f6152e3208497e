"""Pure functions on tensors: torch only, no state."""
from .fake_quant import dequantize, fake_quantize, quantize
from .gradient_scale import gradient_scale
from .grid import IntGrid

__all__ = ['IntGrid', 'dequantize', 'fake_quantize', 'gradient_scale', 'quantize']
