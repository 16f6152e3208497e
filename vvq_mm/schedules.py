"""Schedules: a number as a pure function of the progress of training, so that resuming needs no state.

A config gives a number, or ``dict(type='CosineSchedule', start=0., end=0.01, begin=0.25)``; progress runs from 0 to 1.
"""
import math
from numbers import Real
from typing import Callable, Union

from vvq_mm.errors import QuantizationError
from vvq_mm.registry import SCHEDULES

Schedule = Callable[[float], float]


@SCHEDULES.register_module()
class ConstantSchedule:
    """The same number at all times.

    Example:
        >>> ConstantSchedule(0.01)(0.5)
        0.01
    """

    def __init__(self, value: float) -> None:
        self.value = _finite(value, 'value')

    def __call__(self, progress: float) -> float:
        return self.value

    def __repr__(self) -> str:
        return f'{self.value:g}'


class Ramp:
    """From ``start`` to ``end`` between the progress ``begin`` and ``until``; constant before and after.

    Args:
        start (float): value up to ``begin``. Defaults to 0.
        end (float): value from ``until`` on. Defaults to 0.01.
        begin (float): progress in [0, 1) at which the change begins. Defaults to 0.25.
        until (float): progress in (begin, 1] at which it is complete. Defaults to 1.
    """

    def __init__(self, start: float = 0.0, end: float = 0.01, begin: float = 0.25, until: float = 1.0) -> None:
        self.start, self.end = _finite(start, 'start'), _finite(end, 'end')
        self.begin, self.until = _finite(begin, 'begin'), _finite(until, 'until')
        if not 0 <= self.begin < self.until <= 1:
            raise QuantizationError(f'expected 0 <= begin < until <= 1 in {type(self).__name__}, as shares of the '
                                    f'training, got begin={begin} and until={until}')

    def __call__(self, progress: float) -> float:
        done = min(max((progress - self.begin) / (self.until - self.begin), 0.0), 1.0)
        return self.start + (self.end - self.start) * self.shape(done)

    def shape(self, done: float) -> float:
        """Return the share of the change that is made when ``done`` of its time is over; both in [0, 1]."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.start:g} to {self.end:g}, progress {self.begin:g} to {self.until:g})'


@SCHEDULES.register_module()
class CosineSchedule(Ramp):
    """Half a cosine wave; arguments as in :class:`Ramp`.

    The defaults are the official code's weight of bin regularisation (util_loss.py, CosineTempDecay).

    Example:
        >>> CosineSchedule(start=0., end=1., begin=0.5)(1.0)
        1.0
    """

    def shape(self, done: float) -> float:
        return 0.5 * (1 - math.cos(math.pi * done))


@SCHEDULES.register_module()
class LinearSchedule(Ramp):
    """A straight line; arguments as in :class:`Ramp`.

    Example:
        >>> LinearSchedule(start=0., end=1., begin=0.)(0.25)
        0.25
    """

    def shape(self, done: float) -> float:
        return done


def build_schedule(config: Union[float, dict, Schedule]) -> Schedule:
    """Return the schedule that a config names.

    Args:
        config (float | dict | callable): a constant, a dict with ``type``, or a function from progress to a value.

    Raises:
        QuantizationError: it is none of these, or an argument is wrong.

    Example:
        >>> build_schedule(0.5)(1.0)
        0.5
    """
    if isinstance(config, dict):
        try:
            return SCHEDULES.build(config)
        except TypeError as error:
            message = f'expected arguments that {config.get("type")} knows, got {dict(config)}: {error}'
            raise QuantizationError(message) from error
    if callable(config):
        return config
    return ConstantSchedule(config)


def _finite(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise QuantizationError(f'expected {name} of a schedule to be a finite number, or a schedule as '
                                f"dict(type='CosineSchedule', start=0., end=0.01, begin=0.25, until=1.), got {value!r}")
    return float(value)
