"""What the benchmark is held to: ratios between its rows, taken round by round."""
from typing import Dict, List, NamedTuple, Optional

from .measure import Timing
from .variants import Variant

EAGER, COMPILED, INTEGER = 'eager, everything on', 'compiled, everything on', 'int8 compiled, everything on'
TEXTBOOK = 'textbook, loop over bins, float tracker'
TRACKER_BYTES = 6


class Measured(NamedTuple):
    """What a row of the benchmark measured.

    Args:
        variant (Variant): the row.
        timing (Timing): of its step.
        saved_bytes (int, optional): kept for backward.
        tracker_bytes (float, optional): state of its tracker per tracked weight.
    """

    variant: Variant
    timing: Timing
    saved_bytes: Optional[int] = None
    tracker_bytes: Optional[float] = None


class References(NamedTuple):
    """Names of the rows that others are compared with.

    Args:
        step (str): the full-precision step of all ratios.
        compiled (str, optional): the compiled one.
        explicit (str, optional): the one with attention written out, for memory.
    """

    step: str
    compiled: Optional[str]
    explicit: Optional[str]


def find_references(rows: Dict[str, Measured], cuda: bool) -> References:
    """Return the fastest full-precision rows: eager float32 is the reference on a CPU, compiled bfloat16 on CUDA.

    Raises:
        ValueError: no full-precision row ran.
    """
    floats = [name for name, row in rows.items() if row.variant.model == 'float' and row.variant.autocast == cuda]
    floats = floats or [name for name, row in rows.items() if row.variant.model == 'float']
    floats.sort(key=lambda name: rows[name].timing.median)
    eager = [name for name in floats if not rows[name].variant.compiled]
    compiled = [name for name in floats if rows[name].variant.compiled]
    explicit = [name for name in eager if not rows[name].variant.fused_attention]
    if not floats:
        raise ValueError('expected a full-precision row to compare with, got none; let --rows take one')
    step = (compiled or eager if cuda else eager or compiled)[0]
    return References(step, *(names[0] if names else None for names in (compiled, explicit)))


def judge(rows: Dict[str, Measured], references: References, cuda: bool = False) -> List[dict]:
    """Return the bars that the rows at hand decide: ``what``, ``measured``, ``bound``, ``limit`` and whether ``met``.

    Example:
        >>> rows = {name: Measured(Variant(name, ''), Timing([seconds]))
        ...         for name, seconds in (('FP32', 2.0), ('eager, everything on', 3.0))}
        >>> judge(rows, References('FP32', None, None))[0]['measured']
        1.5
    """
    full = [name for name in (EAGER, COMPILED, INTEGER) if name in rows]
    fastest = min(full, key=lambda name: rows[name].timing.median, default='')

    def time(name, other):
        return rows[name].timing.over(rows[other].timing).median

    def saved(name, other):
        return rows[name].saved_bytes / rows[other].saved_bytes

    def share(name, without):
        return 1 - time(without, name)

    def state(name):
        return rows[name].tracker_bytes

    shares = [(f"{what}'s share of the step, {mode}", share, (f'{mode}, {name}', f'{mode}, {without}'), 'at most', 0.05)
              for mode in ('eager', 'int8 compiled')
              for what, name, without in (('regulariser', '+ regulariser', 'distillation'),
                                          ('tracker', 'everything on', '+ regulariser'))]
    if cuda:
        bars = [('compiled, everything on / compiled BF16', time, (COMPILED, references.step), 'at most', 1.20),
                ('int8 compiled, everything on / compiled BF16', time, (INTEGER, references.step), 'at most', 1.05)]
    else:
        bars = [('eager, everything on / FP32', time, (EAGER, references.step), 'at most', 1.75),
                ('compiled, everything on / compiled FP32', time, (COMPILED, references.compiled), 'at most', 1.25),
                ('int8 compiled, everything on / FP32', time, (INTEGER, references.step), 'at most', 1.05), *shares,
                ('saved for backward, int8 / FP32 with explicit attention', saved, (INTEGER, references.explicit),
                 'at most', 0.90),
                ('saved for backward, eager / FP32 with explicit attention', saved, (EAGER, references.explicit),
                 'at most', 1.8),
                (f'textbook with loop and tracker / our fastest ({fastest})', time, (TEXTBOOK, fastest), 'at least',
                 3.8),
                ('tracker state, bytes per weight', state, (EAGER, ), 'at most', TRACKER_BYTES)]
    results = []
    for what, measure, names, bound, limit in bars:
        measured = measure(*names) if all(name in rows for name in names) else None
        if measured is not None:
            met = measured <= limit if bound == 'at most' else measured >= limit
            results.append(dict(what=what, measured=measured, bound=bound, limit=limit, met=met))
    return results
