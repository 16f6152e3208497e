"""Whether a method is better than another: differences between runs of the same seed."""
from math import isfinite, sqrt
from statistics import mean, stdev
from typing import Dict, List, NamedTuple, Optional, Sequence

from scipy import stats

CLEAR, LIKELY = 0.05, 2  # largest adjusted p, and fewest standard errors
SMALLEST = 0.01  # standard error that is more than the rounding of the rows


class Difference(NamedTuple):
    """Mean of paired differences.

    Args:
        mean (float): in the unit of the values.
        error (float): its standard error, nan with one pair or with equal differences.
        pairs (int): number of seeds that both have.
        p (float): of the two-sided paired t-test, nan where the error is.
    """

    mean: float
    error: float
    pairs: int
    p: float

    @property
    def beyond_two_errors(self) -> bool:
        """Whether the mean is more than two standard errors from zero; never where the error is nan."""
        return abs(self.mean) > LIKELY * self.error


def compare(ours: Dict[str, float], theirs: Dict[str, float]) -> Optional[Difference]:
    """Return ours less theirs, paired by seed; None without a common seed.

    Example:
        >>> compare({'0': 3., '1': 4.}, {'0': 1., '1': 3., '2': 9.}).mean
        1.5
    """
    pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not pairs:
        return None
    if len(pairs) == 1:
        return Difference(pairs[0], float('nan'), 1, float('nan'))
    error = stdev(pairs) / sqrt(len(pairs))
    centre = mean(pairs)
    if error < SMALLEST:  # equal but for rounding, a coincidence of coarse values: they say nothing of the spread
        return Difference(centre, float('nan'), len(pairs), float('nan'))
    return Difference(centre, error, len(pairs), float(2 * stats.t.sf(abs(centre) / error, len(pairs) - 1)))


def holm(values: Sequence[float]) -> List[float]:
    """Return p-values adjusted for their number (Holm's step-down method); nan stays nan and does not count.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted((value, place) for place, value in enumerate(values) if isfinite(value))
    adjusted, largest = [float('nan')] * len(values), 0.0
    for rank, (value, place) in enumerate(order):
        largest = max(largest, min(value * (len(order) - rank), 1.0))
        adjusted[place] = largest
    return adjusted


def verdict(difference: Optional[Difference], adjusted: float) -> str:
    """Return the mark of a difference: ``**`` clear, ``*`` beyond two standard errors, nothing otherwise."""
    if difference is None or not difference.beyond_two_errors:
        return ''
    return '**' if adjusted < CLEAR else '*'
