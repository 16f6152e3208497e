"""Fake quantisation against naive float64 formulas, invariants, and numbers of the official code."""
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vvq_mm.functional.fake_quant import MIN_SCALE, dequantize, fake_quantize, quantize
from vvq_mm.functional.gradient_scale import gradient_scale
from vvq_mm.functional.grid import IntGrid
from vvq_mm.functional.groups import expand_groups, split_groups

OFFICIAL = np.load(Path(__file__).parents[1] / 'golden' / 'official_ops.npz')


def official(key):
    return torch.from_numpy(OFFICIAL[key])


def naive(x, scale, offset, grid, grad):
    """The formulas of LSQ+ element by element: value, and gradients of input, scale and offset."""
    y, dx, ds, do = [], [], 0.0, 0.0
    for value, g in zip(x.double().flatten().tolist(), grad.double().flatten().tolist()):
        v = (value - offset) / scale
        q = float(np.round(min(max(v, grid.qmin), grid.qmax)))  # numpy rounds half to even
        inside = grid.qmin <= v <= grid.qmax
        y.append(q * scale + offset)
        dx.append(g if inside else 0.0)
        ds += g * (q - v if inside else q)
        do += 0.0 if inside else g
    return y, dx, ds, do


@pytest.mark.parametrize('bits', [2, 3, 4, 8], ids=lambda b: f'{b}bit')
@pytest.mark.parametrize('signed', [True, False], ids=['signed', 'unsigned'])
@pytest.mark.parametrize('offset', [None, -0.17], ids=['no-offset', 'offset'])
def test_value_and_gradients_follow_the_formulas(bits, signed, offset):
    grid = IntGrid.of(bits, signed)
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.31], dtype=torch.float64, requires_grad=True)
    shift = None if offset is None else torch.tensor([offset], dtype=torch.float64, requires_grad=True)
    grad = torch.randn(5, 7, dtype=torch.float64)
    out = fake_quantize(x, scale, shift, grid)
    out.backward(grad)
    y, dx, ds, do = naive(x.detach(), 0.31, offset or 0.0, grid, grad)
    torch.testing.assert_close(out.flatten().tolist(), y)
    torch.testing.assert_close(x.grad.flatten().tolist(), dx)
    torch.testing.assert_close(scale.grad.item(), ds)
    if shift is not None:
        torch.testing.assert_close(shift.grad.item(), do)


def test_gradient_at_the_border_of_the_range_is_whole():
    """The official code halves it there (torch.minimum at a tie); the mask of LSQ includes both borders."""
    x = torch.tensor([-2.0, 1.0], requires_grad=True)
    fake_quantize(x, torch.ones(1), None, IntGrid(-2, 1)).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize('bits', [2, 4], ids=lambda b: f'{b}bit')
def test_weight_quantizer_gives_the_official_numbers(bits):
    weight = official(f'w{bits}.weight').requires_grad_()
    scale = official(f'w{bits}.alpha').reshape(1).clone().requires_grad_()
    x, bias = official(f'w{bits}.x'), official(f'w{bits}.bias')
    grid = IntGrid.of(bits, True)
    quantised = fake_quantize(weight, scale, None, grid, 0, gradient_scale('l1', weight, grid.qmax))
    torch.testing.assert_close(quantised, official(f'w{bits}.wq'), rtol=1e-5, atol=1e-7)
    y = torch.nn.functional.linear(x, quantised, bias)
    torch.testing.assert_close(y, official(f'w{bits}.y'), rtol=1e-5, atol=1e-5)
    y.backward(official(f'w{bits}.gy'))
    torch.testing.assert_close(weight.grad, official(f'w{bits}.grad_weight'), rtol=1e-5, atol=1e-5)
    reference = official(f'w{bits}.grad_alpha').sum()  # of the table of seven, one entry is used
    torch.testing.assert_close(scale.grad, reference.reshape(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('bits', [2, 4], ids=lambda b: f'{b}bit')
@pytest.mark.parametrize('kind', ['s', 'u', 'uo'], ids=['signed', 'unsigned', 'unsigned-offset'])
def test_activation_quantizer_gives_the_official_numbers(bits, kind):
    key = f'a{bits}.{kind}'
    x = official(f'{key}.x').requires_grad_()
    scale = official(f'{key}.alpha').reshape(1).clone().requires_grad_()
    offset = official(f'{key}.beta').reshape(1).clone().requires_grad_() if kind == 'uo' else None
    grid = IntGrid.of(bits, kind == 's')
    y = fake_quantize(x, scale, offset, grid, 0, gradient_scale('official_act', x, grid.qmax, batched=True))
    torch.testing.assert_close(y, official(f'{key}.y'), rtol=1e-5, atol=1e-6)
    y.backward(official(f'{key}.gy'))
    torch.testing.assert_close(x.grad, official(f'{key}.grad_x'), rtol=1e-5, atol=1e-6)
    reference = official(f'{key}.grad_alpha').sum()  # of the table of seven, one entry is used
    torch.testing.assert_close(scale.grad, reference.reshape(1), rtol=1e-5, atol=1e-6)
    if offset is not None:
        reference = official(f'{key}.grad_beta').sum()  # of the table of seven, one entry is used
        torch.testing.assert_close(offset.grad, reference.reshape(1), rtol=1e-5, atol=1e-5)


GRIDS = st.builds(IntGrid.of, st.integers(2, 8), st.booleans())
VALUES = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20).map(
    lambda values: torch.tensor(values, dtype=torch.float64))
SCALES = st.floats(2**-6, 4, width=32).map(lambda s: torch.tensor([s], dtype=torch.float64))


@given(VALUES, SCALES, GRIDS)
def test_error_inside_the_range_is_at_most_half_a_step(x, scale, grid):
    inside = x.clamp(grid.qmin * scale.item(), grid.qmax * scale.item())
    assert ((fake_quantize(inside, scale, None, grid) - inside).abs() <= scale / 2 * (1 + 1e-9)).all()


@given(VALUES, SCALES, GRIDS)
def test_codes_are_integers_of_the_grid(x, scale, grid):
    codes = quantize(x, scale, None, grid)
    assert torch.equal(codes, codes.round()) and codes.min() >= grid.qmin and codes.max() <= grid.qmax


@given(VALUES, SCALES, GRIDS)
def test_quantising_twice_changes_nothing(x, scale, grid):
    once = quantize(x, scale, None, grid)
    assert torch.equal(quantize(dequantize(once, scale, None), scale, None, grid), once)


@given(VALUES, SCALES, GRIDS)
def test_larger_inputs_never_get_smaller_values(x, scale, grid):
    ordered = fake_quantize(x.sort().values, scale, None, grid)
    assert (ordered.diff() >= 0).all()


@given(VALUES, SCALES, GRIDS, st.sampled_from([0.25, 2.0, 8.0]))
def test_scaling_input_and_scale_scales_the_output(x, scale, grid, factor):
    scaled = fake_quantize(x * factor, scale * factor, None, grid)
    torch.testing.assert_close(scaled, fake_quantize(x, scale, None, grid) * factor, rtol=0, atol=0)


@pytest.mark.parametrize('axis', [0, 1, 2, -1], ids=lambda a: f'axis{a}')
def test_groups_equal_separate_tensors(axis):
    x, grad = torch.randn(4, 8, 12, requires_grad=True), torch.randn(4, 8, 12)
    scale = torch.tensor([0.1, 0.3], requires_grad=True)
    out = fake_quantize(x, scale, None, IntGrid(-8, 7), axis)
    out.backward(grad)
    for group, (part, g, dx) in enumerate(zip(x.detach().chunk(2, axis), grad.chunk(2, axis), x.grad.chunk(2, axis))):
        part = part.clone().requires_grad_()
        one = scale.detach()[group:group + 1].clone().requires_grad_()
        alone = fake_quantize(part, one, None, IntGrid(-8, 7))
        alone.backward(g)
        assert torch.equal(alone, out.chunk(2, axis)[group]) and torch.equal(part.grad, dx)
        torch.testing.assert_close(one.grad[0], scale.grad[group])


def test_expanded_groups_equal_the_reshaped_broadcast():
    x, values = torch.randn(6, 5), torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(x * expand_groups(values, x.shape, 0), (x.view(3, 2, 5) * values.view(3, 1, 1)).view(6, 5))
    assert torch.equal(split_groups(x, 3, 0), x.view(3, 10))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=['fp16', 'bf16'])
def test_half_precision_input_is_quantised_in_float32(dtype):
    x, scale = torch.randn(64).to(dtype), torch.tensor([0.3])
    out = fake_quantize(x, scale, None, IntGrid(-8, 7))
    assert out.dtype == dtype
    assert torch.equal(out, fake_quantize(x.float(), scale, None, IntGrid(-8, 7)).to(dtype))


def test_an_infinite_input_counts_as_clipped():
    """An activation that overflowed in half precision: infinity times a mask of 0 would be no number."""
    x = torch.tensor([0.25, float('inf'), -float('inf')], requires_grad=True)
    scale = torch.tensor([0.5], requires_grad=True)
    out = fake_quantize(x, scale, None, IntGrid(-2, 1))
    out.backward(torch.tensor([1.0, 2.0, 4.0]))
    assert out.tolist() == [0.0, 0.5, -1.0] and x.grad.tolist() == [1.0, 0.0, 0.0]
    assert scale.grad.item() == -0.5 + 2.0 * 1 + 4.0 * -2


@pytest.mark.parametrize('value', [0.0, -0.3], ids=['zero', 'negative'])
def test_a_scale_that_left_the_positives_acts_as_the_smallest_and_can_come_back(value):
    scale = torch.tensor([value], requires_grad=True)
    out = fake_quantize(torch.tensor([0.5]), scale, None, IntGrid(-8, 7))
    assert out.item() == pytest.approx(7 * MIN_SCALE)
    out.backward()
    assert scale.grad.item() == 7.0


def test_an_empty_tensor_stays_empty():
    x = torch.empty(0, 3, requires_grad=True)
    scale = torch.ones(1, requires_grad=True)
    fake_quantize(x, scale, None, IntGrid(-8, 7)).sum().backward()
    assert scale.grad.item() == 0.0


@pytest.mark.parametrize('rule, expected', [('none', 1.0), ('lsq', (24 * 7)**-0.5),
                                            ('official_act', 1 / (72**0.5 * 7))], ids=str)
def test_gradient_scale_rules(rule, expected):
    assert gradient_scale(rule, torch.randn(3, 4, 6), 7, batched=True) == pytest.approx(expected)


def test_l1_gradient_scale_is_that_of_each_group():
    weight = torch.randn(6, 4)
    expected = torch.stack([(part.abs().sum() * 7)**-0.5 for part in weight.chunk(3)])
    torch.testing.assert_close(gradient_scale('l1', weight, 7, groups=3), expected)


def test_lsq_gradient_scale_of_an_activation_does_not_know_the_batch():
    """The official rule does, so that a run on 8 processes is another method than a run on 1."""
    small, large = torch.randn(2, 9), torch.randn(8, 9)
    assert gradient_scale('lsq', small, 7, batched=True) == gradient_scale('lsq', large, 7, batched=True)
    assert gradient_scale('official_act', small, 7) != gradient_scale('official_act', large, 7)


def test_the_function_traces_without_a_graph_break():
    compiled = torch.compile(lambda x, s: fake_quantize(x, s, None, IntGrid(-8, 7)), fullgraph=True, backend='eager')
    x, scale = torch.randn(8), torch.tensor([0.3])
    assert torch.equal(compiled(x, scale), fake_quantize(x, scale, None, IntGrid(-8, 7)))
