"""Bin regularisation and dampening against naive float64 formulas and the official code's numbers."""
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vvq_mm.functional import IntGrid, quantize
from vvq_mm.functional.bins import bin_loss, dampening_loss
from vvq_mm.functional.gradient_scale import gradient_scale

OFFICIAL = np.load(Path(__file__).parents[1] / 'golden' / 'official_ops.npz')


def naive_bin_loss(weight, codes, scale, grid, axis=0, reduction='sum'):
    """The paper's formula with autograd, boolean masks and a loop over groups and bins, in float64."""
    weight = weight.double()
    step = scale.double().repeat_interleave(weight.shape[axis] // len(scale))
    step = step.view([-1 if i == axis else 1 for i in range(weight.dim())]).expand_as(weight)
    ratio = weight / step
    inside = (ratio >= grid.qmin) & (ratio <= grid.qmax)
    clipped = torch.where(inside, weight, ratio.detach().clamp(grid.qmin, grid.qmax) * step)
    error = (clipped - (codes * step).detach()).square()
    loss = error.sum() if reduction == 'sum' else error.mean()
    values, bins = clipped.movedim(axis, 0).reshape(len(scale), -1), codes.movedim(axis, 0).reshape(len(scale), -1)
    for group in range(len(scale)):
        for code in range(grid.qmin, grid.qmax + 1):
            members = values[group][bins[group] == code]
            if len(members) > 1:
                loss = loss + members.var()
    return loss


def sample(shape, groups, bits, seed=0, axis=0):
    generator = torch.Generator().manual_seed(seed)
    grid = IntGrid.of(bits, signed=True)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    scale = (0.5 + torch.rand(groups, generator=generator, dtype=torch.float64)).mul(2 / grid.levels).requires_grad_()
    return weight, quantize(weight, scale, None, grid, axis).to(torch.int8), scale, grid


@pytest.mark.parametrize('reduction', ['sum', 'mean'])
@pytest.mark.parametrize('shape, groups, axis', [
    ((6, 5), 1, 0), ((6, 5), 3, 0), ((6, 8), 4, 1), ((4, 3, 2, 2), 4, 0), ((24, ), 2, 0),
], ids=['tensor', 'rows', 'columns', 'conv per channel', 'vector'])
@pytest.mark.parametrize('bits', [2, 4, 8], ids=lambda bits: f'{bits} bit')
def test_loss_and_gradients_equal_the_naive_formula(bits, shape, groups, axis, reduction):
    weight, codes, scale, grid = sample(shape, groups, bits, axis=axis)
    loss = bin_loss(weight, codes, scale, grid, axis, reduction)
    naive = naive_bin_loss(weight, codes, scale, grid, axis, reduction)
    torch.testing.assert_close(loss, naive)
    expected = torch.autograd.grad(3 * naive, (weight, scale), allow_unused=True)
    for ours, theirs in zip(torch.autograd.grad(3 * loss, (weight, scale)), expected):
        torch.testing.assert_close(ours, torch.zeros_like(ours) if theirs is None else theirs)


def test_float32_agrees_with_float64_on_a_large_layer():
    weight, codes, scale, grid = sample((768, 512), 1, bits=4)
    wide = bin_loss(weight, codes, scale, grid)
    narrow = bin_loss(weight.float(), codes, scale.float(), grid)
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=0)


@pytest.mark.parametrize('index', [0, 1])
def test_mean_form_equals_the_official_code_at_two_bits(index):
    weight = torch.tensor(OFFICIAL[f'obr2.{index}.weight']).requires_grad_()
    scale = torch.tensor(OFFICIAL[f'obr2.{index}.alpha']).view(1).requires_grad_()
    grid = IntGrid.of(2, signed=True)
    codes = quantize(weight, scale, None, grid).to(torch.int8)
    factor = gradient_scale('l1', weight, grid.qmax)
    (0.01 * bin_loss(weight, codes, scale, grid, reduction='mean', gradient_scale=factor)).backward()
    expected = torch.tensor(OFFICIAL[f'obr2.{index}.grad_weight'])
    assert (weight.grad - expected).norm() <= 1e-5 * expected.norm()
    torch.testing.assert_close(scale.grad[0], torch.tensor(OFFICIAL[f'obr2.{index}.grad_alpha']), rtol=1e-5, atol=0)


def test_mean_form_of_two_layers_adds_up_to_the_official_loss():
    grid, total = IntGrid.of(2, signed=True), 0.0
    for index in range(2):
        weight = torch.tensor(OFFICIAL[f'obr2.{index}.weight'])
        scale = torch.tensor(OFFICIAL[f'obr2.{index}.alpha']).view(1)
        codes = quantize(weight, scale, None, grid).to(torch.int8)
        total += 0.01 * bin_loss(weight, codes, scale, grid, reduction='mean').item()
    assert total == pytest.approx(float(OFFICIAL['obr2.loss']), rel=1e-5)


@pytest.mark.parametrize('bits', [3, 4])
def test_no_bin_is_lost_where_the_official_float_comparison_loses_some(bits):
    grid = IntGrid.of(bits, signed=True)
    codes = torch.arange(grid.qmin, grid.qmax + 1).repeat_interleave(2)
    lost = 0
    for scale in torch.linspace(0.011, 0.1, 200).split(1):
        values = codes * scale
        present = (values / scale).eq(torch.arange(grid.qmin, grid.qmax + 1)[:, None]).any(1)
        lost += int((~present).sum())
        # two weights per bin, 0.1 and 0.3 of a step above its code (below it in the last bin)
        weight = values + scale * torch.tensor([0.1, 0.3]).repeat(grid.levels) * torch.where(codes == grid.qmax, -1, 1)
        ours = bin_loss(weight, codes.to(torch.int8), scale, grid)
        expected = scale.double().square() * grid.levels * (0.1**2 + 0.3**2 + 0.2**2 / 2)
        torch.testing.assert_close(ours.double(), expected[0], rtol=1e-4, atol=0)
    assert lost > 0, 'the scales tried here no longer show the defect of the official comparison'


def test_a_bin_with_one_weight_has_no_variance():
    loss = bin_loss(torch.tensor([0.25, 1.]), torch.tensor([0, 1]), torch.tensor([1.]), IntGrid(-2, 1))
    assert loss.item() == 0.25**2


def test_weights_on_the_grid_cost_nothing_and_stay():
    weight = torch.tensor([-2., -1., 0., 1.]).repeat(3).requires_grad_()
    loss = bin_loss(weight, weight.detach().to(torch.int8), torch.tensor([1.]), IntGrid(-2, 1))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, weight)[0].abs().max() == 0


def test_a_frozen_weight_is_pulled_to_its_frozen_code():
    weight = torch.tensor([0.75]).requires_grad_()
    loss = bin_loss(weight, torch.tensor([0]), torch.tensor([1.]), IntGrid(-2, 1))
    assert torch.autograd.grad(loss, weight)[0].item() == 2 * 0.75


def test_backward_keeps_no_float_copy_of_the_weight():
    weight, codes, scale, grid = sample((32, 64), 1, bits=4)
    extra = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: extra.append(x) or x, lambda x: x):
        bin_loss(weight, codes, scale, grid)
    own = {weight.data_ptr(), codes.data_ptr()}
    assert sum(tensor.numel() for tensor in extra if tensor.data_ptr() not in own) <= 3 * grid.levels


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 5), power=st.integers(-6, 6))
def test_loss_grows_with_the_square_of_the_unit(seed, bits, power):
    weight, codes, scale, grid = sample((8, 8), 2, bits, seed)
    factor = 2.0**power
    scaled = bin_loss(weight * factor, codes, scale * factor, grid)
    torch.testing.assert_close(scaled, bin_loss(weight, codes, scale, grid) * factor**2)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 5))
def test_loss_is_at_least_the_dampening_loss(seed, bits):
    weight, codes, scale, grid = sample((6, 7), 1, bits, seed)
    assert bin_loss(weight, codes, scale, grid) >= dampening_loss(weight, codes, scale, grid)


@pytest.mark.parametrize('reduction', ['sum', 'mean'])
def test_dampening_is_the_squared_distance_and_spares_clipped_weights(reduction):
    weight, codes, scale, grid = sample((6, 5), 1, bits=2)
    loss = dampening_loss(weight, codes, scale, grid, reduction=reduction)
    inside = (weight / scale >= grid.qmin) & (weight / scale <= grid.qmax)
    distance = ((weight - codes * scale) * inside).detach()
    count = 1 if reduction == 'sum' else weight.numel()
    torch.testing.assert_close(loss, distance.square().sum() / count)
    torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], 2 * distance / count)
    assert not inside.all(), 'the sample has no clipped weight'


def test_codes_of_the_caller_are_left_as_they_are():
    weight, scale, codes = torch.randn(6, 4), torch.tensor([0.4]), torch.zeros(6, 4)
    bin_loss(weight, codes, scale, IntGrid.of(4, True))
    assert torch.equal(codes, torch.zeros(6, 4))
