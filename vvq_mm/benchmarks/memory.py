"""Memory of a step: what it keeps for backward, and the most it holds at once."""
import ctypes
import gc
import sys
from typing import Callable, Iterable, Iterator, List, Union

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

# of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def saved_bytes(forward: Callable[[], Tensor], exclude: Iterable[Tensor] = ()) -> int:
    """Return the bytes that one forward keeps for its backward, each storage once and as a whole.

    Counted is what autograd saves, in eager and in compiled code (AOTAutograd hands its activations to the same hooks),
    and tensors that a custom function keeps on its context instead of saving them. ``forward`` runs twice: a compiled
    function must be compiled before the hooks are set, or it compiles them in.

    Args:
        forward (callable): returns the loss, a tensor with a graph.
        exclude (iterable of Tensor): whose storages do not count: parameters and buffers, and inputs if wanted.

    Example:
        >>> x = torch.ones(10, requires_grad=True)
        >>> saved_bytes(lambda: x.exp().sum())  # the result of exp
        40
    """
    forward()
    saved: List[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)  # alive to the end, so that no address is used twice
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward()
    saved.extend(_kept_on_contexts(loss))
    known = {tensor.untyped_storage()._cdata for tensor in exclude}
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in saved}
    return sum(size for key, size in storages.items() if key not in known)


def _kept_on_contexts(loss: Tensor) -> Iterator[Tensor]:
    """Yield the tensors among the attributes of custom functions in the graph of ``loss``."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting.extend(parent for parent, _ in node.next_functions)
        yield from tensors_in(list(getattr(node, '__dict__', {}).values()))


def tensors_in(value) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples, dicts and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict) or hasattr(value, '__dataclass_fields__'):
        yield from tensors_in(list((value if isinstance(value, dict) else vars(value)).values()))


def state_bytes(tracker) -> int:
    """Return the bytes of an oscillation tracker's statistics, each storage once; without the graph they may hold."""
    tensors = list(tensors_in(tracker.states))
    return sum({tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def peak_memory(step: Callable[[], object], device: Union[str, torch.device] = 'cpu') -> int:
    """Return the most bytes that ``step`` holds at once beyond what is there before it.

    CUDA: of the caching allocator (``max_memory_allocated``). CPU: of PyTorch's allocator, added up from the profiler's
    log of every allocation and release; eager and compiled code alike. Not counted are work space that libraries take
    from elsewhere (oneDNN's scratch pads, thread-local sums in compiled kernels) and freed memory that the allocator
    keeps. Run a step before, so that gradients and the optimizer's state are there or are not, as in training.

    Example:
        >>> peak_memory(lambda: torch.empty(1000, dtype=torch.uint8))
        1000
    """
    gc.collect()
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == '[memory]']
    held = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, for the rest of the process, and return whether it does.

    By default it gives the activations of a step back to the system and gets them anew in the next one, page by page:
    some 40,000 page faults a step at 250 MB, a tenth of the time of a small model on a CPU, of all variants alike.
    Without glibc nothing happens.
    """
    if not sys.platform.startswith('linux'):
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    return mallopt is not None and all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2**31 - 1)])
