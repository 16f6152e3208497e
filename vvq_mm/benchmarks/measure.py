"""Time of several steps in one process, interleaved round by round. Nothing here knows about quantisation."""
import gc
import random
import statistics
import time
from dataclasses import dataclass
from typing import Callable, Dict, Iterator, List, Tuple, Union

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of a step, one entry per round.

    Example:
        >>> Timing([3., 1., 2.]).median
        2.0
    """

    seconds: List[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> Tuple[float, float]:
        """Lower and upper quartile."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        lower, _, upper = statistics.quantiles(self.seconds, n=4, method='inclusive')
        return lower, upper

    @property
    def minimum(self) -> float:
        return min(self.seconds)

    def over(self, reference: 'Timing') -> 'Timing':
        """Return the ratio to ``reference`` round by round: a machine that slows down for a while slows both."""
        return Timing([own / other for own, other in zip(self.seconds, reference.seconds)])


def interleaved(steps: Dict[str, Callable[[], object]], rounds: int = 20, warmup: int = 3,
                device: Union[str, torch.device] = 'cpu', seed: int = 0, progress: bool = True) -> Dict[str, Timing]:
    """Return the :class:`Timing` of each step; every round runs every step once, in an order of its own.

    Garbage is collected between rounds and never within a step. The progress bar draws between steps, without a thread
    of its own. On CUDA the time is that between two events of the stream, with the device idle before the first.

    Args:
        steps (dict): name -> callable without arguments, for instance a whole training step.
        rounds (int): timed runs of each step. Defaults to 20.
        warmup (int): runs of each step before, not timed; compilation happens here. Defaults to 3.
        device (str | torch.device): where the steps compute. Defaults to ``cpu``.
        seed (int): of the orders. Defaults to 0.
        progress (bool): whether to draw a bar on stderr. Defaults to True.

    Example:
        >>> timings = interleaved({'copy': lambda: torch.ones(8).clone()}, rounds=5, warmup=1)
        >>> len(timings['copy'].seconds)
        5
    """
    generator, clock = random.Random(seed), _cuda_seconds if torch.device(device).type == 'cuda' else _cpu_seconds
    order, seconds = list(steps), {name: [] for name in steps}
    collecting = gc.isenabled()
    try:
        for index, name in _progress([(index, name) for name in order for index in range(-warmup, 0)], 'warm up',
                                     progress):
            clock(steps[name])
        schedule = [name for _ in range(rounds) for name in generator.sample(order, len(order))]
        gc.disable()
        for index, name in _progress(list(enumerate(schedule)), 'rounds', progress):
            if index % len(order) == 0:
                gc.collect()
            seconds[name].append(clock(steps[name]))
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(values) for name, values in seconds.items()}


def _cpu_seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _cuda_seconds(step: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def _progress(items: list, title: str, visible: bool) -> Iterator:
    """Yield (index, name) items under a bar that shows the name; drawn from this thread alone."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn('{task.fields[step]}'))
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, disable=not visible) as bar:
        task = bar.add_task(title, total=len(items), step='')
        for item in items:
            bar.update(task, step=item[1])
            bar.refresh()
            yield item
            bar.advance(task)
        bar.update(task, step='')
        bar.refresh()
