"""Mixed precision: widths of least summed loss under a budget, and what a width costs."""
from itertools import product

import pytest
import torch
from helpers import VIT_RULES, calibrated, tiny_qat
from hypothesis import given
from hypothesis import strategies as st

from vvq_mm.analysis import mixed_precision
from vvq_mm.analysis.cost import model_cost, multiply_accumulates
from vvq_mm.analysis.mixed_precision import (choose_widths, free_parts, measure_losses, operation_costs, weight_costs,
                                             weight_counts, with_widths)
from vvq_mm.analysis.parts import find_parts
from vvq_mm.errors import QuantizationError
from vvq_mm.surgery import iter_quantizers
from vvq_mm.utils.evaluate import Score

WIDTHS = (2, 3, 4)
LAYER = st.tuples(st.lists(st.integers(-5, 50), min_size=3, max_size=3), st.integers(1, 9))


def best(losses, costs, budget):
    """The smallest summed loss, by trying everything."""
    choices = product(WIDTHS, repeat=len(losses))
    return min(sum(loss[width] for loss, width in zip(losses, choice)) for choice in choices
               if sum(cost[width] for cost, width in zip(costs, choice)) <= budget)


@given(st.lists(LAYER, min_size=1, max_size=4), st.floats(0, 1))
def test_the_choice_is_that_of_brute_force(layers, part):
    losses = [dict(zip(WIDTHS, values)) for values, _ in layers]
    costs = [{width: width * size for width in WIDTHS} for _, size in layers]
    size = sum(size for _, size in layers)
    budget = size * (2 + 2 * part)
    chosen = choose_widths(losses, costs, budget)
    assert sum(cost[width] for cost, width in zip(costs, chosen)) <= budget
    assert sum(loss[width] for loss, width in zip(losses, chosen)) == best(losses, costs, budget)


def test_a_search_with_few_states_stays_within_the_budget_and_near_the_best(monkeypatch):
    random = torch.Generator().manual_seed(0)
    losses = [dict(zip(WIDTHS, torch.rand(3, generator=random).sort(descending=True)[0].tolist())) for _ in range(8)]
    costs = [{width: width * size for width in WIDTHS} for size in torch.rand(8, generator=random).tolist()]
    budget = 0.75 * sum(cost[4] for cost in costs)
    monkeypatch.setattr(mixed_precision, 'STATES', 40)
    chosen = choose_widths(losses, costs, budget)
    assert sum(cost[width] for cost, width in zip(costs, chosen)) <= budget
    assert sum(loss[width] for loss, width in zip(losses, chosen)) <= 1.1 * best(losses, costs, budget)


def test_a_budget_below_the_smallest_widths_is_refused():
    with pytest.raises(QuantizationError, match='a budget of at least 4, .*got 3'):
        choose_widths([{2: 1., 3: 0.}] * 2, [{2: 2, 3: 3}] * 2, budget=3)


# ---- parts and costs

def test_layers_that_the_config_gives_another_width_are_not_free():
    model = tiny_qat(bits=3)
    names = [part.name for part in free_parts(model, find_parts(model, 'layers'))]
    assert 'backbone.layers.0.attn (query, key)' in names and 'backbone.layers.1.ffn.layers.1' in names
    assert not [name for name in names if name.startswith(('head', 'backbone.patch_embed'))]


def test_activations_wider_than_weights_keep_their_width():
    model = tiny_qat(bits=3, rules={**VIT_RULES, '*.layers.*': dict(act=8)})
    free = free_parts(model, find_parts(model, 'layers'))
    assert {piece.slot for part in free for piece in part.pieces} == {'weight'}


def test_a_width_goes_to_all_slots_of_a_part_and_the_plan_given_stays():
    model = tiny_qat(bits=3)
    part = next(part for part in find_parts(model, 'layers') if part.name.endswith('0.attn (prob, value)'))
    changed = with_widths(model.plan, [(part, 5)])
    different = [(name, slot) for name, slot, config in changed.items() if config != model.plan.slots[name][slot]]
    assert different == [piece[:2] for piece in sorted(part.pieces, key=lambda piece: piece.slot == 'prob')]
    assert {changed.slots[name][slot]['bits'] for name, slot in different} == {5}


def test_weight_costs_are_whole_bits_that_meet_a_budget_exactly():
    """As shares of an average they would not: 48 layers of DeiT-T at 3 bits add up to 3.000000000000001."""
    model = tiny_qat()
    layers = [part for part in free_parts(model, find_parts(model, 'layers')) if '(' not in part.name]
    costs, counts = weight_costs(model, layers, WIDTHS), weight_counts(model, layers)
    assert counts == [model.get_submodule(part.name).weight.numel() for part in layers]
    assert all(cost == {width: width * count for width in WIDTHS} for cost, count in zip(costs, counts))
    assert choose_widths([dict.fromkeys(WIDTHS, 0.0) | {3: -1.0}] * len(layers), costs, 3.0 * sum(counts)) == [3] * len(
        layers)


def test_operation_costs_add_up_to_those_of_the_model():
    model, image = calibrated(tiny_qat(bits=3)).eval(), torch.zeros(1, 3, 32, 32)
    parts = find_parts(model, 'layers')
    bits = {(name, slot): quantizer.bits for name, _, slot, quantizer in iter_quantizers(model)}
    costs = operation_costs(model, parts, (3, 8), multiply_accumulates(model, image))
    assert sum(cost[bits[part.pieces[0][:2]]] for part, cost in zip(parts, costs)) == \
        model_cost(model, image).bit_operations


def test_losses_are_those_of_one_part_alone():
    model = calibrated(tiny_qat(bits=3))
    parts, asked = find_parts(model, 'layers')[:2], []

    def score():
        quantised = [name for name, _, _, quantizer in iter_quantizers(model) if quantizer.mode == 'quantize']
        return Score(0., 100. * asked[-1] + len(quantised), 1)

    losses = measure_losses(model, parts, (2, 4), asked.append, score)
    assert losses == [{2: 202., 4: 402.}, {2: 202., 4: 402.}] and asked == [2, 4]
