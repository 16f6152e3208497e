"""The packages of ``pip install 'vvq_mm[deploy]'``: asked for by name, and only where they are used."""
import importlib
import re
from types import ModuleType
from typing import NamedTuple, Tuple

from vvq_mm.errors import QuantizationError


class _Package(NamedTuple):
    purpose: str
    oldest: str  # the oldest version that was seen to work


PACKAGES = dict(
    onnx=_Package('writing and checking ONNX files', '1.20'),
    onnxscript=_Package('writing ONNX files of full-precision models', '0.7'),
    onnxruntime=_Package('running ONNX files', '1.20'),
    openvino=_Package('running ONNX files in OpenVINO', '2025.0'),
)


def require(name: str) -> ModuleType:
    """Import an optional package.

    Args:
        name (str): a key of ``PACKAGES``.

    Raises:
        QuantizationError: the package is missing, cannot be imported, or is older than what works.

    Example:
        >>> require('onnxruntime').__name__
        'onnxruntime'
    """
    purpose, oldest = PACKAGES[name]
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        found = 'it is not installed' if getattr(error, 'name', None) == name else f'it cannot be imported ({error})'
        raise QuantizationError(f'expected the package {name} for {purpose}, but {found}; run '
                                "`pip install 'vvq_mm[deploy]'`") from error
    version = getattr(module, '__version__', '')
    if _numbers(version) < _numbers(oldest):
        raise QuantizationError(f'expected {name} {oldest} or newer for {purpose}, got {version}; run '
                                f"`pip install '{name}>={oldest}'`")
    return module


def _numbers(version: str) -> Tuple[int, ...]:
    """Return major and minor number.

    >>> _numbers('2026.4.1-22982-e213a147257')
    (2026, 4)
    """
    return tuple(int(number) for number in re.findall(r'\d+', version)[:2])
