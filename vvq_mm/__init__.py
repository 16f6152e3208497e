"""Low-bit vision transformers for MMEngine and MMPretrain: the torch-level API; the registries import the rest.

``import vvq_mm`` also tells MMEngine where this package's configs are, so that ``_base_ = 'vvq_mm::...'`` works.
"""
from mmengine.config.utils import MODULE2PACKAGE

from .calibration import calibrate
from .errors import CheckpointError, QuantizationError, QuantizerNotReady, SoftLabelError, TrainingDiverged
from .policy import QuantPlan
from .surgery import apply_plan, iter_quantizers, quantize_, quantizer_mode, unquantize_, verify
from .version import __version__

# A module name that is no distribution: MMEngine then asks the import system where it is, which is right for a wheel
# and for an editable install; the distribution's name would be looked for in site-packages alone.
MODULE2PACKAGE.setdefault('vvq_mm', 'vvq_mm.version')

__all__ = ['CheckpointError', 'QuantPlan', 'QuantizationError', 'QuantizerNotReady', 'SoftLabelError',
           'TrainingDiverged', '__version__', 'apply_plan', 'calibrate', 'iter_quantizers', 'quantize_',
           'quantizer_mode', 'unquantize_', 'verify']
