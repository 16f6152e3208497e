"""A mixed-precision plan for a config under a budget, beside the uniform plan of the same budget."""
from typing import List, NamedTuple, Sequence, Tuple

from tqdm import tqdm

from vvq_mm.analysis.cost import Cost, model_cost, multiply_accumulates
from vvq_mm.analysis.mixed_precision import (choose_widths, free_parts, measure_losses, operation_costs, weight_costs,
                                             weight_counts, with_widths)
from vvq_mm.analysis.parts import Part, find_parts
from vvq_mm.errors import QuantizationError
from vvq_mm.policy import QuantPlan
from vvq_mm.surgery import quantizer_mode

from .evaluate import Score
from .trial import Trial

BUDGETS = ('average_bits', 'bitops')
GIGA = 1e9


class Candidate(NamedTuple):
    """A plan and what is known of it before any training.

    Args:
        plan (QuantPlan): for the whole model.
        score (Score): right after calibration.
        cost (Cost): of the whole model.
        average_bits (float): of the weights whose widths were chosen.
    """

    plan: QuantPlan
    score: Score
    cost: Cost
    average_bits: float


class Suggestion(NamedTuple):
    """A chosen and a uniform plan of one budget.

    Args:
        mixed (Candidate): the widths that add up to the smallest loss.
        uniform (Candidate): one width for all, the widest within the budget.
        uniform_bits (int): that width.
        layers (list of dict): ``name``, ``bits`` and ``losses``, width -> loss with it alone quantised.
        full_precision (Score): of the float model.
    """

    mixed: Candidate
    uniform: Candidate
    uniform_bits: int
    layers: List[dict]
    full_precision: Score


def parse_budget(text: str) -> Tuple[str, float]:
    """Return kind and number of a budget.

    Example:
        >>> parse_budget('average_bits=3')
        ('average_bits', 3.0)
    """
    kind, _, number = text.partition('=')
    try:
        if kind in BUDGETS:
            return kind, float(number)
    except ValueError:
        pass
    raise QuantizationError(f'expected a budget as average_bits=3 or bitops=0.5 (giga bit operations per image), got '
                            f'{text!r}')


def suggest(trial: Trial, kind: str, budget: float, widths: Sequence[int]) -> Suggestion:
    """Return the plan of least summed loss within a budget.

    Layers that the config gives another width than most (first and last at 8 bits) keep it. They do not count in
    ``average_bits``, as in the name of a uniform W3A3 model, and they count in ``bitops``, which is of the whole model.
    Under ``average_bits`` the operands of attention products, which are no weights, get the uniform width; under
    ``bitops`` they are chosen as well.

    Args:
        trial (Trial): of the config.
        kind (str): ``average_bits`` over weights, or ``bitops``, giga bit operations per image.
        budget (float): largest value.
        widths (sequence of int): to choose from.
    """
    model, widths = trial.model, sorted(set(widths))
    every = free_parts(model, find_parts(model, 'layers'))
    layers = [part for part in every if _has_weight(part)]
    if kind == 'average_bits':
        parts, costs = layers, weight_costs(model, layers, widths)
        limit = budget * sum(weight_counts(model, layers))
    else:
        accumulates = multiply_accumulates(model, trial.image())
        parts, costs = every, operation_costs(model, every, widths, accumulates)
        module, slot, _ = every[0].pieces[0]
        present = trial.plan.slots[module][slot]['bits']
        own = sum(cost[present] for cost in operation_costs(model, every, [present], accumulates))
        limit = budget * GIGA - (model_cost(model, trial.image()).bit_operations - own)
    uniform_bits = _uniform(costs, widths, limit, kind, budget)
    with quantizer_mode(model, 'float'):
        full = trial.score()

    def requantise(bits: int) -> None:
        trial.use(with_widths(trial.plan, [(part, bits) for part in every]))

    def score() -> Score:
        result = trial.score()
        bar.update()
        return result

    with tqdm(total=len(parts) * len(widths), desc='layers x widths') as bar:
        losses = measure_losses(model, parts, widths, requantise, score)
    chosen = choose_widths(losses, costs, limit)
    start = with_widths(trial.plan, [(part, uniform_bits) for part in every])
    mixed = with_widths(start, zip(parts, chosen))
    rows = [dict(name=part.name, bits=bits, losses=of_part) for part, bits, of_part in zip(parts, chosen, losses)]
    return Suggestion(_candidate(trial, mixed, layers), _candidate(trial, start, layers), uniform_bits, rows, full)


def _has_weight(part: Part) -> bool:
    return any(piece.slot == 'weight' for piece in part.pieces)


def _uniform(costs: List[dict], widths: Sequence[int], limit: float, kind: str, budget: float) -> int:
    """Return the widest width that all parts can have within the limit."""
    within = [width for width in widths if sum(cost[width] for cost in costs) <= limit]
    if not within:
        raise QuantizationError(f'expected a budget that the smallest width, {widths[0]}, fits into, got '
                                f'{kind}={budget:g}; give a larger budget or smaller --widths')
    return within[-1]


def _candidate(trial: Trial, plan: QuantPlan, layers: Sequence[Part]) -> Candidate:
    """Quantise by a plan and return what is known of it."""
    trial.use(plan)
    widths = [plan.slots[part.pieces[0].module]['weight']['bits'] for part in layers]
    costs = weight_costs(trial.model, layers, sorted(set(widths)))
    average = sum(cost[bits] for cost, bits in zip(costs, widths)) / sum(weight_counts(trial.model, layers))
    return Candidate(plan, trial.score(), model_cost(trial.model, trial.image()), average)
