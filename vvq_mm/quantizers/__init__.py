"""Quantizers: modules that hold a scale and move a tensor to its grid."""
from .base import MODES, Quantizer
from .lsq import LSQQuantizer
from .observer import Observer, weight_statistics

__all__ = ['LSQQuantizer', 'MODES', 'Observer', 'Quantizer', 'weight_statistics']
