"""What multiplies float32 matrices on a CPU: MKL, PyTorch's default, or oneDNN where that is as accurate."""
from typing import List, Tuple

import torch

from .measure import interleaved

FLOAT32_ERROR = 1e-5  # of the largest entry; products in bfloat16 are off by more than 1e-3
SIZE = 768


def use_library(name: str) -> None:
    """Let float32 products go through ``MKL`` or ``oneDNN`` from now on; without the switch nothing happens."""
    if _has_switch():
        torch.backends.mkldnn.matmul.fp32_precision = 'bf16' if name == 'oneDNN' else 'none'


def find_libraries() -> Tuple[List[str], str]:
    """Return what float32 products may go through on this CPU, the fastest first, and the reason in words.

    The switch that sends products to oneDNN also allows it to compute them in bfloat16. On a CPU with AMX it does;
    elsewhere it computes in float32, which is checked against float64 here.
    """
    if not torch.backends.mkldnn.is_available() or not _has_switch():
        return ['MKL'], 'This PyTorch cannot send float32 products to oneDNN: it is not measured.'
    if torch.cpu._is_amx_tile_supported():
        return ['MKL'], 'This CPU has AMX, where oneDNN would compute float32 products in bfloat16: it is not used.'
    errors = {name: library_error(name) for name in ('MKL', 'oneDNN')}
    words = ', '.join(f'{error:.1e} through {name}' for name, error in errors.items())
    words = f'No AMX; largest error of a float32 product over its largest entry: {words}'
    if errors['oneDNN'] > FLOAT32_ERROR:
        return ['MKL'], f'{words}, which is not float32: oneDNN is not used.'
    seconds = _seconds(list(errors))
    speed = seconds['MKL'] / seconds['oneDNN']
    return sorted(seconds, key=seconds.get), f'{words}: both are float32. oneDNN is {speed:.2f} times as fast as MKL.'


def library_error(name: str, size: int = SIZE) -> float:
    """Return the largest error of a float32 product of square matrices against float64, over its largest entry."""
    a, b = _matrices(size)
    exact = a.double() @ b.double()
    return ((_product(name, a, b) - exact).abs().max() / exact.abs().max()).item()


def _has_switch() -> bool:
    return hasattr(torch.backends.mkldnn, 'matmul')  # PyTorch 2.9


def _seconds(names: List[str]) -> dict:
    """Return the shortest time of a product through each library."""
    a, b = _matrices(SIZE)
    steps = {name: lambda name=name: _product(name, a, b) for name in names}
    return {name: timing.minimum for name, timing in interleaved(steps, rounds=10, progress=False).items()}


def _product(name: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    use_library(name)
    try:
        return a @ b
    finally:
        use_library('MKL')


def _matrices(size: int) -> Tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(size, size, generator=generator) for _ in range(2))
