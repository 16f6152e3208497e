"""Mixed precision: widths of layers from their sensitivities, under a budget.

The sensitivity of a layer to a width is the loss of the model with that layer alone quantised. The converse, one layer
in float and the rest quantised, tells little at 2 bits: the fully quantised model then often guesses right after
calibration, and one layer more or less does not change that. The losses of single layers are assumed to add up, which
is better the smaller they are.
"""
import copy
from collections import Counter
from math import prod
from typing import Callable, Dict, Iterable, List, Sequence

from torch import nn

from vvq_mm.errors import QuantizationError
from vvq_mm.policy import QuantPlan
from vvq_mm.surgery import iter_quantizers

from .cost import FLOAT_BITS, is_attention
from .parts import Part
from .sensitivity import only_part

PAIRS = (('weight', 'input'), ('query', 'key'), ('prob', 'value'))  # slots that are multiplied with each other
STATES = 5000  # of the search that are kept after each layer; fewer widths and layers than that needs are exact


def choose_widths(losses: Sequence[Dict[int, float]], costs: Sequence[Dict[int, float]], budget: float) -> List[int]:
    """Return the width of each layer that minimises the summed loss within a budget of summed cost.

    Layer by layer, only the choices so far that no other beats in both cost and loss are kept; with more than 5,000 of
    them, an even sample by cost, the result is near the best and still within the budget.

    Args:
        losses (sequence of dict): of each layer, width -> loss.
        costs (sequence of dict): of each layer, width -> cost.
        budget (float): largest sum of costs.

    Raises:
        QuantizationError: even the cheapest widths exceed the budget.

    Example:
        >>> choose_widths([{2: 5., 4: 1.}, {2: 2., 4: 1.}], [{2: 2, 4: 4}, {2: 2, 4: 4}], budget=6)
        [4, 2]
    """
    cheapest = [min(cost.values()) for cost in costs]
    if sum(cheapest) > budget:
        raise QuantizationError(f'expected a budget of at least {sum(cheapest):.4g}, the cost of the smallest widths, '
                                f'got {budget:.4g}')
    front = [(0.0, 0.0, None)]  # cost, loss, (width, the rest)
    for index, (loss, cost) in enumerate(zip(losses, costs)):
        left = budget - sum(cheapest[index + 1:])
        states = sorted(((spent + cost[width], lost + loss[width], (width, chain)) for spent, lost, chain in front
                         for width in loss if spent + cost[width] <= left), key=lambda state: state[:2])
        front = []
        for state in states:
            if not front or state[1] < front[-1][1]:
                front.append(state)
        if len(front) > STATES:
            front = [front[step * (len(front) - 1) // (STATES - 1)] for step in range(STATES)]
    widths, chain = [], front[-1][2]
    while chain is not None:
        width, chain = chain
        widths.append(width)
    return widths[::-1]


def free_parts(model: nn.Module, parts: Iterable[Part]) -> List[Part]:
    """Return the parts with those of their slots that have the commonest width of the weights.

    Other widths are there on purpose: first and last layer at 8 bits, or activations wider than weights.

    Raises:
        QuantizationError: no weight is quantised.
    """
    bits = {(name, slot): quantizer.bits for name, _, slot, quantizer in iter_quantizers(model)}
    of_weights = Counter(width for (_, slot), width in bits.items() if slot == 'weight')
    if not of_weights:
        raise QuantizationError('expected quantised weights to choose widths for, got none; suggest from a config '
                                'whose policy has a template for weights')
    usual = of_weights.most_common(1)[0][0]
    usable = [Part(part.name, tuple(piece for piece in part.pieces if bits[piece[:2]] == usual)) for part in parts]
    return [part for part in usable if part.pieces]


def with_widths(plan: QuantPlan, widths: Iterable) -> QuantPlan:
    """Return a plan with other widths; ``plan`` stays as it is.

    Args:
        plan (QuantPlan): to start from.
        widths (iterable of (Part, int)): the new width of all slots of a part.
    """
    plan = copy.deepcopy(plan)
    for part, bits in widths:
        for piece in part.pieces:
            plan.slots[piece.module][piece.slot]['bits'] = bits
    return plan


def measure_losses(model: nn.Module, parts: Sequence[Part], widths: Iterable[int], requantise: Callable,
                   score: Callable) -> List[Dict[int, float]]:
    """Return for each part width -> loss of the model with that part alone quantised.

    Args:
        model (nn.Module): quantised.
        parts (sequence of Part): whole slots.
        widths (iterable of int): to try.
        requantise (callable): called with a width, gives all parts that width and calibrates the model.
        score (callable): evaluates the model as it is now; returns an object with ``loss``.
    """
    losses: List[Dict[int, float]] = [{} for _ in parts]
    for width in widths:
        requantise(width)
        for part, of_part in zip(parts, losses):
            with only_part(model, part):
                of_part[width] = score().loss
    return losses


def weight_counts(model: nn.Module, parts: Sequence[Part]) -> List[int]:
    """Return the number of weights of each part."""
    return [sum(model.get_submodule(piece.module).weight.numel() for piece in part.pieces if piece.slot == 'weight')
            for part in parts]


def weight_costs(model: nn.Module, parts: Sequence[Part], widths: Iterable[int]) -> List[Dict[int, int]]:
    """Return for each part width -> bits of its weights; whole numbers, whose sums meet a budget exactly."""
    return [{width: width * count for width in widths} for count in weight_counts(model, parts)]


def operation_costs(model: nn.Module, parts: Sequence[Part], widths: Iterable[int],
                    accumulates: Dict[str, int]) -> List[Dict[int, float]]:
    """Return for each part width -> bit operations per image.

    Args:
        model (nn.Module): quantised.
        parts (sequence of Part): of one layer or one attention product each; slots that they leave out keep their
            width.
        widths (iterable of int): to try.
        accumulates (dict): of :func:`vvq_mm.analysis.cost.multiply_accumulates`.
    """
    bits = {(name, slot): quantizer.bits for name, _, slot, quantizer in iter_quantizers(model)}
    costs = []
    for part in parts:
        name, first, _ = part.pieces[0]
        own = {piece.slot for piece in part.pieces}
        pair = next(pair for pair in PAIRS if first in pair)
        count = accumulates[name] // (2 if is_attention(model.get_submodule(name)) else 1)
        costs.append({width: count * prod(width if slot in own else bits.get((name, slot), FLOAT_BITS) for slot in pair)
                      for width in widths})
    return costs
