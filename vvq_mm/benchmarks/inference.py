"""Latency, memory and accuracy of the inference benchmark's rows, each number of threads in a process of its own.

A fresh process has no idle threads of other pools, and compiles for its number of threads. Within it all rows take
turns, see :func:`vvq_mm.benchmarks.interleaved`.
"""
import gc
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmpretrain.registry import MODELS
from mmpretrain.utils import register_all_modules
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vvq_mm.errors import QuantizationError
from vvq_mm.utils.evaluate import build_batches

from .inference_rows import Row, integer_share, open_row
from .measure import Timing, interleaved
from .memory import keep_freed_memory

GRAPHS = 256  # compiled rows share the code of `forward`, and each batch size is a graph of its own
STATUS = '/proc/self/status'


@dataclass
class Measured:
    """What a process measured.

    Args:
        timings (dict): batch size -> name of the row -> Timing.
        integer (dict): name of the row -> how many of its products ran on integers, and how many there are.
        accuracy (dict): name of the row -> top-1 in %.
        skipped (dict): name of the row -> why it did not run.
    """

    timings: Dict[int, Dict[str, Timing]] = field(default_factory=dict)
    integer: Dict[str, Optional[List[int]]] = field(default_factory=dict)
    accuracy: Dict[str, float] = field(default_factory=dict)
    skipped: Dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TestImages:
    """Images to judge rows by.

    Args:
        config (str): config file with a ``test_dataloader``.
        preprocessor (dict): config of the data preprocessor.
        images (int, optional): how many, spread evenly over the test set. Defaults to all.
        rows (sequence of str): names of the rows.
    """

    __test__ = False  # not a class of pytest's
    config: str
    preprocessor: dict
    images: Optional[int] = None
    rows: Sequence[str] = ()


def in_fresh_process(function: Callable, *args, **kwargs):
    """Return ``function(*args, **kwargs)``, computed in a new process.

    Raises:
        QuantizationError: the process ended before it had a result.
    """
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except BrokenProcessPool as error:
            raise QuantizationError('expected a result of the process that measures, but it was ended from outside or '
                                    'crashed; if there was too little memory, measure fewer --rows') from error


def measure(rows: Sequence[Row], input_shape: Sequence[int], batch_sizes: Sequence[int], threads: int, rounds: int,
            test_images: Optional[TestImages] = None) -> Measured:
    """Time rows on random images; changes settings of the process, see :func:`in_fresh_process`.

    Args:
        rows (sequence of Row): what runs.
        input_shape (sequence of int): C, H, W of an image.
        batch_sizes (sequence of int): images of a call.
        threads (int): of the CPU.
        rounds (int): timed calls of each row at each batch size.
        test_images (TestImages, optional): count correct predictions too. Defaults to not.
    """
    _prepare(threads)
    measured, networks = Measured(), {}
    for row in _bar(rows, f'open, {threads} thread{"s" * (threads > 1)}'):
        try:
            networks[row.name] = open_row(row, threads)
            networks[row.name](torch.zeros(batch_sizes[0], *input_shape))
            measured.integer[row.name] = integer_share(row)
        except (ImportError, QuantizationError) as error:
            networks.pop(row.name, None)
            measured.skipped[row.name] = str(error).splitlines()[0]
    for size in batch_sizes:
        images = torch.randn(size, *input_shape, generator=torch.Generator().manual_seed(0))
        steps = {name: (lambda run=run, images=images: run(images)) for name, run in networks.items()}
        measured.timings[size] = interleaved(steps, rounds)
    if test_images is not None:
        networks = {name: run for name, run in networks.items() if name in test_images.rows}
        measured.accuracy = count_correct(networks, test_images, batch_sizes[-1])
    return measured


def _prepare(threads: int) -> None:
    """Set what all rows of a process share."""
    register_all_modules()
    MMLogger.get_instance('benchmark', log_level='ERROR')
    warnings.filterwarnings('ignore')  # of other libraries; what is left out is said
    keep_freed_memory()
    torch.set_num_threads(threads)
    for name in ('recompile_limit', 'accumulated_recompile_limit'):
        setattr(torch._dynamo.config, name, GRAPHS)


def count_correct(networks: Dict[str, Callable[[Tensor], Tensor]], test_images: TestImages,
                  batch_size: int) -> Dict[str, float]:
    """Return the top-1 accuracy in % of each network; every batch has the same size, as compiled networks want it."""
    batches = build_batches(Config.fromfile(test_images.config).test_dataloader, test_images.images, batch_size)
    preprocessor = MODELS.build({'type': 'mmpretrain.ClsDataPreprocessor', **test_images.preprocessor})
    correct, total = dict.fromkeys(networks, 0), 0
    for data in _bar(batches, 'accuracy') if networks else ():
        data = preprocessor(data, False)
        images, labels = data['inputs'], torch.cat([sample.gt_label for sample in data['data_samples']])
        whole = images[torch.arange(batch_size) % len(images)]
        for name, run in networks.items():
            correct[name] += int((run(whole)[:len(images)].argmax(-1) == labels).sum())
        total += len(images)
    return {name: 100 * count / total for name, count in correct.items()}


def _bar(items, title: str):
    return track(items, title, console=Console(stderr=True), transient=True)


def peak_memory_of(row: Row, input_shape: Sequence[int], batch_size: int) -> Optional[int]:
    """Return the most resident bytes while a row is opened and runs one batch, beyond the bare process's.

    The bare process has imported PyTorch and the runtime. With glibc's usual habits, and with the compiler where a row
    is compiled. None where the system does not tell. For :func:`in_fresh_process`.
    """
    register_all_modules()
    MMLogger.get_instance('benchmark', log_level='ERROR')
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    if row.backend in ('onnxruntime', 'openvino'):
        __import__(row.backend)
    gc.collect()
    before = _resident()
    if before is None:
        return None
    images = torch.zeros(batch_size, *input_shape)
    open_row(row)(images)
    return _resident()[1] - before[0]


def _resident() -> Optional[Tuple[int, int]]:
    """Return the bytes that are resident now and at most so far.

    Not of ``getrusage``, whose maximum a process inherits from the one that started it.
    """
    if not sys.platform.startswith('linux'):
        return None
    with open(STATUS) as file:
        sizes = dict(line.split(':', 1) for line in file)
    return tuple(1024 * int(sizes[key].split()[0]) for key in ('VmRSS', 'VmHWM'))
