"""Leave-one-part-out on a config, right after calibration."""
from typing import List, NamedTuple, Sequence

from tqdm import tqdm

from vvq_mm.analysis.parts import choose_parts
from vvq_mm.analysis.sensitivity import Variant, leave_one_out
from vvq_mm.surgery import quantizer_mode

from .evaluate import Score
from .trial import Trial


class Sensitivity(NamedTuple):
    """What leaving parts in float gains.

    Args:
        full_precision (Score): with everything in float.
        quantised (Score): with nothing in float but what the config leaves so.
        variants (list of Variant): by falling gain in loss.
    """

    full_precision: Score
    quantised: Score
    variants: List[Variant]


def post_training(trial: Trial, words: Sequence[str]) -> Sensitivity:
    """Return the sensitivity of the parts that ``words`` name, on a calibrated model without training."""
    parts = choose_parts(trial.model, words)
    with quantizer_mode(trial.model, 'float'):
        full = trial.score()
    base = trial.score()
    variants = leave_one_out(trial.model, tqdm(parts, desc='parts', leave=False), trial.score, base)
    return Sensitivity(full, base, sorted(variants, key=lambda variant: -variant.gain_loss))
