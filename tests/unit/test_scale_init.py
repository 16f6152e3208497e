"""First scales against naive formulas and against the official code."""
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vvq_mm.functional.fake_quant import MIN_SCALE, fake_quantize
from vvq_mm.functional.grid import IntGrid
from vvq_mm.functional.scale_init import (Statistics, initial_scale, least_squares_init, lsq_init, mse_init,
                                          percentile_init)

OFFICIAL = np.load(Path(__file__).parents[1] / 'golden' / 'official_ops.npz')


def statistics(values):
    values = torch.as_tensor(values, dtype=torch.float32)
    values = values.reshape(1, -1) if values.ndim < 2 else values
    return Statistics(values, values.abs().mean(1))


def error(values, scale, offset, grid):
    return (fake_quantize(values, scale, offset, grid) - values).square().mean().item()


@given(st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=30), st.sampled_from([2, 3, 4, 8]), st.booleans(),
       st.booleans())
def test_mse_init_is_never_worse_than_the_full_range(values, bits, signed, use_offset):
    stats, grid = statistics(values), IntGrid.of(bits, signed)
    scale, offset = mse_init(stats, grid, use_offset)
    low, high = stats.values.amin(1), stats.values.amax(1)
    both_sides = torch.maximum(high / grid.qmax, low / grid.qmin if grid.qmin else low * 0)
    full = ((high - low) / (grid.levels - 1) if use_offset else both_sides).clamp_min(MIN_SCALE)
    full_offset = low - grid.qmin * full if use_offset else None
    assert error(stats.values, scale, offset, grid) <= error(stats.values, full, full_offset, grid) + 1e-9


def test_mse_init_clips_an_outlier():
    values = torch.cat([torch.linspace(-1, 1, 1000), torch.tensor([4.0])])
    scale, _ = mse_init(statistics(values), IntGrid.of(4, True), False)
    assert scale.item() * 7 < 2


def test_mse_init_puts_the_smallest_code_at_the_smallest_value():
    _, offset = mse_init(statistics(torch.linspace(-0.17, 3, 100)), IntGrid.of(4, False), True)
    assert offset.item() == pytest.approx(-0.17)


def test_lsq_init_is_twice_the_mean_magnitude_over_root_qmax():
    values = torch.randn(1, 500)
    expected = 2 * values.abs().mean().item() / 7**0.5
    assert lsq_init(statistics(values), IntGrid.of(4, True)).item() == pytest.approx(expected)


def test_percentile_init_ends_the_range_there():
    values = torch.arange(1, 1001.0).reshape(1, -1)
    assert percentile_init(statistics(values), IntGrid.of(4, True), 50.0).item() * 7 == pytest.approx(500.5)


@pytest.mark.parametrize('bits', [2, 3, 4], ids=lambda b: f'{b}bit')
@pytest.mark.parametrize('layer', [2, 4], ids=['w2', 'w4'])
def test_official_weight_init_agrees_with_the_official_scales(layer, bits):
    weight = torch.from_numpy(OFFICIAL[f'w{layer}.weight'])
    scale = least_squares_init(statistics(weight.reshape(1, -1)), IntGrid.of(bits, True))
    assert scale.item() == pytest.approx(float(OFFICIAL[f'w{layer}.alphas'].flatten()[bits - 2]), rel=2e-5)


@pytest.mark.parametrize('kind', ['s', 'u', 'uo'], ids=['signed', 'unsigned', 'unsigned-offset'])
@pytest.mark.parametrize('bits', [2, 4], ids=lambda b: f'{b}bit')
def test_official_activation_init_agrees_with_the_official_scales(bits, kind):
    """It takes the signed limit for unsigned codes too: a defect, reproduced only under this name."""
    x = torch.from_numpy(OFFICIAL[f'a{bits}.{kind}.x'])
    grid = IntGrid.of(bits, kind == 's')
    scale, offset = initial_scale('official', statistics(x.reshape(1, -1)), grid, kind == 'uo', 'act')
    assert scale.item() == pytest.approx(2 * x.abs().mean().item() / (2**(bits - 1) - 1)**0.5, rel=1e-6)
    assert offset is None or offset.item() == 0.0


def test_groups_are_initialised_apart():
    values = torch.stack([torch.linspace(-1, 1, 50), torch.linspace(-10, 10, 50)])
    scale, _ = initial_scale('mse', statistics(values), IntGrid.of(4, True), False, 'weight')
    assert scale[1].item() == pytest.approx(10 * scale[0].item(), rel=1e-5)


@pytest.mark.parametrize('rule', ['mse', 'percentile', 'lsq', 'official'])
def test_a_tensor_of_zeros_gets_the_smallest_scale(rule):
    scale, _ = initial_scale(rule, statistics(torch.zeros(1, 10)), IntGrid.of(4, True), False, 'weight')
    assert scale.item() == pytest.approx(MIN_SCALE)
