"""Products on integer codes against naive float64 products of the values that the codes stand for."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vvq_mm.functional import integer_product as module
from vvq_mm.functional.fake_quant import dequantize, fake_quantize, quantize
from vvq_mm.functional.grid import IntGrid
from vvq_mm.functional.groups import expand_groups
from vvq_mm.functional.integer_product import IntegerOperand, float_product, int_bmm, int_matmul, integer_product

GRIDS = {f'{bits}-bit {"signed" if signed else "unsigned"}': IntGrid.of(bits, signed)
         for bits in range(2, 9) for signed in (True, False)}
OFFSETS = dict(no_offset=(None, None), left=(-0.17, None), right=(None, 0.6), both=(-0.17, 0.6))
ROUNDING = 1e-6  # of float32, relative to the largest sum of absolute products


def random_codes(grid, *shape):
    """All codes of the grid, the extreme ones among them, as a quantizer gives them."""
    codes = torch.randint(grid.qmin, grid.qmax + 1, shape)
    codes.view(-1)[:2] = torch.tensor([grid.qmin, grid.qmax])[:codes.numel()]
    return codes.to(torch.int8 if grid.qmax < 128 else torch.uint8)


def operand(codes, scale, offset, groups=1, axis=0):
    """Return the operand of ``codes`` with ``groups`` scales around ``scale``, and what it stands for in float64."""
    scales = expand_groups(scale * torch.linspace(0.5, 1.5, groups + 1)[1:], codes.shape, axis)
    offsets = None if offset is None else expand_groups(offset + torch.arange(groups) / 8, codes.shape, axis)
    exact = codes.double() * scales.double() + (0 if offsets is None else offsets.double())
    return IntegerOperand.of(codes, scales, offsets), exact


def assert_rounded(actual, left, right, expected, rounding=ROUNDING):
    """Assert that ``actual`` is ``expected`` up to rounding of the terms that are added."""
    sizes = [one.codes.double().abs() * one.scale + (0 if one.offset is None else one.offset.abs())
             for one in (left, right)]
    assert actual.shape == expected.shape
    assert ((actual.double() - expected).abs() <= rounding * (sizes[0] @ sizes[1]).max()).all()


def product(left, right, left_values, right_values, dtype=torch.float32):
    return integer_product(left_values.to(dtype), right_values.to(dtype), left, right, dtype)


@pytest.mark.parametrize('offsets', OFFSETS.values(), ids=OFFSETS)
@pytest.mark.parametrize('grid', GRIDS.values(), ids=GRIDS)
def test_a_linear_layer_is_the_float64_product(grid, offsets):
    """Activations (2, 7, 13) and a weight (11, 13) with a scale for each output channel."""
    x, x_values = operand(random_codes(grid, 2, 7, 13), 0.31, offsets[0])
    weight, weight_values = operand(random_codes(grid, 11, 13), 0.05, offsets[1], groups=11)
    out = product(x, weight.mT, x_values, weight_values.mT)
    assert_rounded(out, x, weight.mT, x_values @ weight_values.mT)


@pytest.mark.parametrize('offsets', OFFSETS.values(), ids=OFFSETS)
@pytest.mark.parametrize('grid', GRIDS.values(), ids=GRIDS)
def test_attention_with_scales_per_head_is_the_float64_product(grid, offsets):
    query, query_values = operand(random_codes(grid, 2, 3, 5, 7), 0.31, offsets[0], groups=3, axis=1)
    key, key_values = operand(random_codes(grid, 2, 3, 11, 7), 0.05, offsets[1], groups=3, axis=1)
    out = product(query, key.mT, query_values, key_values.mT)
    assert_rounded(out, query, key.mT, query_values @ key_values.mT)


SIZES = st.sampled_from([1, 2, 3, 7, 8, 13, 16, 17, 31])


@given(rows=SIZES, depth=SIZES, columns=SIZES, batch=st.sampled_from([(), (1, ), (3, ), (2, 2)]), shared=st.booleans(),
       left_grid=st.sampled_from(list(GRIDS.values())), right_grid=st.sampled_from(list(GRIDS.values())),
       offsets=st.sampled_from(list(OFFSETS.values())), seed=st.integers(0, 2**31))
def test_any_shape_is_the_float64_product(rows, depth, columns, batch, shared, left_grid, right_grid, offsets, seed):
    torch.manual_seed(seed)
    left, left_values = operand(random_codes(left_grid, *batch, rows, depth), 0.3, offsets[0])
    right, right_values = operand(random_codes(right_grid, *(() if shared else batch), depth, columns), 0.1, offsets[1])
    assert_rounded(product(left, right, left_values, right_values), left, right, left_values @ right_values)


@given(rows=SIZES, depth=SIZES, columns=SIZES, batch=st.sampled_from([(), (3, ), (2, 2)]), shared=st.booleans(),
       seed=st.integers(0, 2**31))
def test_sums_of_codes_are_exact(rows, depth, columns, batch, shared, seed):
    torch.manual_seed(seed)
    a, b = random_codes(IntGrid(-128, 127), *batch, rows, depth), random_codes(
        IntGrid(-128, 127), *(() if shared else batch), depth, columns)
    assert torch.equal(int_matmul(a, b).long(), a.long() @ b.long())


@pytest.mark.parametrize('depth', [1024, 1025, 4097], ids=lambda depth: f'{depth} terms')
@pytest.mark.parametrize('codes', [(-128, -128), (-128, 127), (127, 127)], ids=str)
@pytest.mark.parametrize('batched', [False, True], ids=['matrix', 'batch'])
def test_long_sums_of_extreme_codes_are_exact(depth, codes, batched):
    """They pass 2**24, where float32 stops to hold every whole number, and the pairs that int16 would saturate."""
    a = torch.full((1, 3, depth) if batched else (3, depth), codes[0], dtype=torch.int8)
    b = torch.full((1, depth, 2) if batched else (depth, 2), codes[1], dtype=torch.int8)
    assert int_matmul(a, b).flatten().tolist() == [depth * codes[0] * codes[1]] * 6


@pytest.mark.parametrize('depth', [1, 64, 1024, 1025, 4097], ids=lambda depth: f'{depth} terms')
def test_batches_multiplied_as_floats_are_exact(depth):
    """What devices without a batched int8 kernel do; beyond 2**24 the sum is rounded once, as from int32."""
    a, b = random_codes(IntGrid(-128, 127), 2, 3, depth), random_codes(IntGrid(-128, 127), 2, depth, 5)
    a[0], b[0] = -128, -128
    a[0, 0, 0] = -127  # a sum that is no multiple of a power of two
    assert torch.equal(module._float_bmm(a, b), (a.long() @ b.long()).float())


@pytest.mark.parametrize('transposed', ['left', 'right', 'both'])
def test_transposed_views_are_multiplied_as_they_are(transposed):
    a, b = random_codes(IntGrid(-8, 7), 2, 6, 9), random_codes(IntGrid(-8, 7), 2, 9, 4)
    a = a.mT.contiguous().mT if transposed in ('left', 'both') else a
    b = b.mT.contiguous().mT if transposed in ('right', 'both') else b
    assert torch.equal(int_matmul(a, b).long(), a.long() @ b.long())
    assert torch.equal(int_matmul(a, b[0]).long(), a.long() @ b[0].long())


EMPTY = {'no images': ((0, 4, 5), (5, 3)), 'no rows': ((2, 0, 5), (5, 3)), 'nothing to sum': ((2, 4, 0), (0, 3)),
         'no columns': ((2, 4, 5), (5, 0)), 'no heads': ((2, 0, 4, 5), (2, 0, 5, 3)),
         'no images, per head': ((0, 2, 4, 5), (0, 2, 5, 3)), 'nothing to sum, per head': ((2, 4, 0), (2, 0, 3))}


@pytest.mark.parametrize('shapes', EMPTY.values(), ids=EMPTY)
def test_empty_tensors_give_the_shape_and_gradients_of_the_float_product(shapes):
    operands = [operand(torch.zeros(shape, dtype=torch.int8), 0.3, -0.2) for shape in shapes]
    a, b = (values.float().requires_grad_() for _, values in operands)
    out = integer_product(a, b, *(one for one, _ in operands), torch.float32)
    out.sum().backward()
    assert torch.equal(out, a.detach() @ b.detach())
    assert a.grad.shape == a.shape and b.grad.shape == b.shape


def gradients(function, *inputs):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype))
    return [leaf.grad for leaf in leaves]


def assert_close_to_largest(actual, expected, rounding=ROUNDING):
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert (actual - expected).abs().max() <= rounding * expected.abs().max()


@pytest.mark.parametrize('offsets', OFFSETS.values(), ids=OFFSETS)
@pytest.mark.parametrize('shapes', [((2, 5, 7), (7, 3)), ((2, 3, 5, 7), (2, 3, 7, 11)), ((1, 7), (7, 1))],
                         ids=['linear', 'attention', 'one row'])
@pytest.mark.parametrize('bits', [2, 4, 8], ids=lambda bits: f'{bits}bit')
def test_gradients_are_those_of_the_float_product(bits, shapes, offsets):
    grids = IntGrid.of(bits, False), IntGrid.of(bits, True)
    sides = [operand(random_codes(grid, *shape), 0.3, offset)
             for grid, shape, offset in zip(grids, shapes, offsets)]
    inputs = [values.float() for _, values in sides]
    actual = gradients(lambda a, b: integer_product(a, b, *(one for one, _ in sides), torch.float32), *inputs)
    for one, other in zip(actual, gradients(torch.matmul, *inputs)):
        assert_close_to_largest(one, other)


@pytest.mark.parametrize('bits', [2, 3, 4, 8], ids=lambda bits: f'{bits}bit')
@pytest.mark.parametrize('signed', [True, False], ids=['signed', 'unsigned'])
def test_scale_and_offset_learn_through_it_as_through_the_float_product(bits, signed):
    grid = IntGrid.of(bits, signed)
    x, weight = torch.randn(4, 7), torch.randn(5, 7)
    x_scale, x_offset, w_scale = torch.tensor([3. / grid.qmax]), torch.tensor([-0.2]), torch.tensor([2. / grid.qmax])

    def through(multiply):
        def function(x, x_scale, x_offset, weight, w_scale):
            left, right = fake_quantize(x, x_scale, x_offset, grid), fake_quantize(weight, w_scale, None, grid)
            return multiply(left, right.mT)
        return gradients(function, x, x_scale, x_offset, weight, w_scale)

    def codes(x, scale, offset):
        whole = quantize(x, scale, offset, grid)
        return IntegerOperand.of(whole.to(torch.int8 if grid.qmax < 128 else torch.uint8), scale.view(1, 1),
                                 None if offset is None else offset.view(1, 1))

    left, right = codes(x, x_scale, x_offset), codes(weight, w_scale, None).mT
    actual = through(lambda a, b: integer_product(a, b, left, right, torch.float32))
    for one, other in zip(actual, through(torch.matmul)):
        assert_close_to_largest(one, other)


@pytest.mark.parametrize('wanted', [(True, False), (False, True), (False, False)], ids=['left', 'right', 'none'])
def test_only_wanted_gradients_are_made(wanted):
    sides = [operand(random_codes(IntGrid(-8, 7), 3, 3), 0.3, None) for _ in range(2)]
    a, b = (values.float().requires_grad_(want) for (_, values), want in zip(sides, wanted))
    out = integer_product(a, b, *(one for one, _ in sides), torch.float32)
    if any(wanted):
        out.sum().backward()
    assert (a.grad is not None, b.grad is not None) == wanted and out.requires_grad == any(wanted)


def test_only_codes_and_scales_are_kept_for_backward():
    left, left_values = operand(random_codes(IntGrid(-8, 7), 16, 32), 0.3, -0.1)
    right, right_values = operand(random_codes(IntGrid(-8, 7), 8, 32), 0.3, None, groups=8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        integer_product(left_values.float().requires_grad_(), right_values.float().mT.requires_grad_(), left, right.mT,
                        torch.float32)
    assert sum(x.numel() for x in kept if x.dtype == torch.int8) == 16 * 32 + 8 * 32
    assert sum(x.numel() for x in kept if x.dtype != torch.int8) <= 1 + 1 + 8


@pytest.mark.parametrize('dtype, rounding', [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)], ids=['bf16', 'fp16'])
def test_the_result_is_rounded_once_to_half_precision(dtype, rounding):
    left, left_values = operand(random_codes(IntGrid(0, 255), 6, 40), 0.01, -0.2)
    right, right_values = operand(random_codes(IntGrid(-8, 7), 40, 5), 0.05, None)
    out = product(left, right, left_values, right_values, dtype)
    assert out.dtype == dtype
    wide = product(left, right, left_values, right_values)
    assert torch.equal(out, wide.to(dtype))
    assert_rounded(out, left, right, left_values @ right_values, rounding)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bf16', 'fp16'])
def test_backward_runs_in_the_dtype_of_the_gradient(dtype):
    sides = [operand(random_codes(IntGrid(-8, 7), *shape), 0.25, None) for shape in ((6, 4), (4, 5))]
    inputs = [values.to(dtype) for _, values in sides]
    actual = gradients(lambda a, b: integer_product(a, b, *(one for one, _ in sides), dtype), *inputs)
    for one, other in zip(actual, gradients(torch.matmul, *inputs)):
        assert_close_to_largest(one, other, rounding=2**-7)


@given(grid=st.sampled_from(list(GRIDS.values())), offset=st.sampled_from([None, -0.17, 3.0]))
def test_an_operand_stands_for_the_dequantised_codes(grid, offset):
    codes, scale = random_codes(grid, 5, 9), torch.tensor([0.3])
    shift = None if offset is None else torch.tensor([offset])
    one = IntegerOperand.of(codes, scale.view(1, 1), None if shift is None else shift.view(1, 1))
    assert one.codes.dtype == torch.int8
    expected = dequantize(codes.float(), scale, shift)
    torch.testing.assert_close(one.values(torch.float32), expected, rtol=1e-6, atol=1e-6 * 0.3 * 255)
    assert torch.equal(one.mT.values(torch.float32), one.values(torch.float32).mT)


class OnCuda(torch.Tensor):
    """A tensor of this CPU that says it is on a GPU."""
    device = property(lambda self: torch.device('cuda'))


@pytest.mark.parametrize('shape', [(1, 1, 1), (16, 8, 8), (17, 16, 24), (5, 13, 10), (40, 7, 3)], ids=str)
def test_matrices_are_padded_to_what_cuda_takes(monkeypatch, shape):
    rows, depth, columns = shape
    taken, whole = [], torch._int_mm

    def cuda_int_mm(a, b):
        taken.append((a.shape, b.shape))
        assert a.shape[0] > 16 and a.shape[1] % 8 == 0 and b.shape[1] % 8 == 0, 'CUDA refuses this shape'
        return whole(a.as_subclass(torch.Tensor), b.as_subclass(torch.Tensor))

    monkeypatch.setattr(torch, '_int_mm', cuda_int_mm)
    a, b = random_codes(IntGrid(-128, 127), rows, depth), random_codes(IntGrid(-128, 127), depth, columns)
    out = module._int_mm(a.as_subclass(OnCuda), b.as_subclass(OnCuda)).as_subclass(torch.Tensor)
    assert taken and torch.equal(out.long(), a.long() @ b.long())


def test_the_batched_operator_is_one_that_a_compiler_can_trust():
    a, b = random_codes(IntGrid(-8, 7), 2, 3, 5), random_codes(IntGrid(-8, 7), 2, 5, 4)
    torch.library.opcheck(int_bmm, (a, b))
    torch.library.opcheck(int_bmm, (a[:0], b[:0]))


@pytest.mark.parametrize('shapes', [((2, 3, 5, 7), (2, 3, 4, 7)), ((6, 7), (4, 7))], ids=['attention', 'matrix'])
def test_the_transposed_float_product_has_the_gradients_of_autograd(shapes):
    inputs = [torch.randn(shape) for shape in shapes]
    assert torch.equal(float_product(*inputs, transposed=True), inputs[0] @ inputs[1].mT)
    actual = gradients(lambda a, b: float_product(a, b, transposed=True), *inputs)
    for one, other in zip(actual, gradients(lambda a, b: a @ b.mT, *inputs)):
        assert one.is_contiguous()
        assert_close_to_largest(one, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('shapes', [((3, 7, 13), (13, 5)), ((2, 3, 9, 64), (2, 3, 64, 9)), ((1, 1), (1, 1))], ids=str)
def test_cuda_sums_are_exact(shapes):
    a, b = (random_codes(IntGrid(-128, 127), *shape) for shape in shapes)
    assert torch.equal(int_matmul(a.cuda(), b.cuda()).cpu().long(), a.long() @ b.long())
