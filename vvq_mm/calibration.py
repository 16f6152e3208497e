"""Calibration: the first value of every scale, from training images; never in forward, never again after a resume."""
from typing import Callable, Iterable, List, Optional

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vvq_mm.errors import QuantizationError
from vvq_mm.functional.scale_init import Statistics
from vvq_mm.quantizers import Observer, Quantizer, weight_statistics
from vvq_mm.surgery import iter_quantizers, quantizer_mode


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable, forward: Optional[Callable] = None) -> int:
    """Initialise the scales of all quantizers that are not ready and return how many there were.

    Weights are looked at directly; activations on ``batches``, with the model in eval mode and every quantizer in
    float. All ranks of a process group exchange what they saw, so they end with the same scales, whatever their images.

    Args:
        model (nn.Module): a quantised model.
        batches (iterable): inputs, at least one.
        forward (callable, optional): runs the model on a batch. Defaults to ``model``.

    Raises:
        QuantizationError: no batch, a slot that no batch reached, or ranks that disagree.

    Example:
        >>> calibrate(model, [torch.rand(8, 3, 224, 224)])
        148
    """
    waiting = [(module, quantizer) for _, module, _, quantizer in iter_quantizers(model) if not quantizer.ready]
    weights = [(module, quantizer) for module, quantizer in waiting if quantizer.kind == 'weight']
    acts = [quantizer for _, quantizer in waiting if quantizer.kind == 'act']
    for module, quantizer in weights:
        quantizer.initialise(weight_statistics(module.weight, quantizer.groups, quantizer.axis))
    if acts:
        _observe(model, acts, batches, forward or model)
        for quantizer in acts:
            quantizer.initialise(_exchange(_statistics(quantizer)))
            quantizer.observer = None
    _check_ranks_agree([quantizer for _, quantizer in waiting])
    return len(waiting)


def _observe(model: nn.Module, quantizers: List[Quantizer], batches: Iterable, forward: Callable) -> None:
    """Run the batches with ``quantizers`` looking on; modes and training flags are restored."""
    training = [module for module in model.modules() if module.training]
    for quantizer in quantizers:
        quantizer.observer = Observer(quantizer.groups, quantizer.axis)
    count = 0
    try:
        with quantizer_mode(model, 'float'):
            for quantizer in quantizers:
                quantizer.mode = 'observe'
            model.eval()
            for batch in batches:
                forward(batch)
                count += 1
    finally:
        for module in training:
            module.training = True
    if not _fewest(count, next(model.parameters()).device):
        raise QuantizationError('expected at least one batch to calibrate on, in every process, got none; check the '
                                'data loader')


def _fewest(count: int, device: torch.device) -> int:
    """Return the smallest ``count`` of all ranks, so that all of them stop where one would leave the others waiting."""
    counts = torch.tensor(count, device=device)
    if _several_ranks():
        dist.all_reduce(counts, dist.ReduceOp.MIN)
    return int(counts)


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _statistics(quantizer: Quantizer) -> Statistics:
    if not quantizer.observer.samples:
        raise QuantizationError(f'expected a forward to reach {quantizer.where}, none did; leave the slot in float '
                                'with a rule')
    return quantizer.observer.statistics()


def _exchange(statistics: Statistics) -> Statistics:
    """Return the statistics of all ranks together; unchanged without a process group."""
    if not _several_ranks():
        return statistics
    world = dist.get_world_size()
    values: List[Tensor] = [torch.empty_like(statistics.values) for _ in range(world)]
    dist.all_gather(values, statistics.values.contiguous())
    mean_abs = statistics.mean_abs.clone()
    dist.all_reduce(mean_abs)
    return Statistics(torch.cat(values, dim=1), mean_abs / world)


def _check_ranks_agree(quantizers: List[Quantizer]) -> None:
    """Raise unless all ranks hold the same scales and offsets."""
    if not quantizers or not _several_ranks():
        return
    mine = torch.cat([parameter.detach() for quantizer in quantizers for parameter in quantizer.parameters()])
    low, high = mine.clone(), mine.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN)
    dist.all_reduce(high, dist.ReduceOp.MAX)
    if not torch.equal(low, high):
        raise QuantizationError('expected equal scales on all ranks after calibration, got different ones; the ranks '
                                'hold different weights: load the checkpoint before calibrating, on every rank')
