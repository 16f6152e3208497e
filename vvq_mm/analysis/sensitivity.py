"""Sensitivity: what a model gains when one part of it stays in float (arXiv 2307.00331, section 4.1)."""
import copy
import dataclasses
from contextlib import contextmanager
from typing import Callable, Dict, Iterable, Iterator, List, NamedTuple, Tuple

from torch import nn

from vvq_mm.errors import QuantizationError
from vvq_mm.policy import QuantPlan
from vvq_mm.quantizers import Quantizer
from vvq_mm.surgery import iter_quantizers, quantizer_mode

from .parts import Part, Piece


class Variant(NamedTuple):
    """A model with one part in float, beside the fully quantised one.

    Args:
        part (str): what is in float.
        weights (float): share of the quantised weights that are in it.
        top1 (float): in %.
        loss (float): cross-entropy in nats.
        gain_top1 (float): percentage points more than the fully quantised model.
        gain_loss (float): nats less than the fully quantised model.
    """

    part: str
    weights: float
    top1: float
    loss: float
    gain_top1: float
    gain_loss: float


@contextmanager
def part_in_float(model: nn.Module, part: Part) -> Iterator[None]:
    """Let a part pass in float; what surrounds it is quantised by the same scales as before. Restored at the end.

    Gradients flow through the part as through a float model.

    Example:
        >>> with part_in_float(model, choose_parts(model, ['query'])[0]):
        ...     logits = model(images)
    """
    quantizers = _by_slot(model)
    before = [(quantizers[piece[:2]], quantizers[piece[:2]].mode) for piece in part.pieces]
    for piece in part.pieces:
        _check_whole(quantizers[piece[:2]].float_part, piece)
    try:
        for piece in part.pieces:
            if piece.blocks is None:
                quantizers[piece[:2]].mode = 'float'
            else:
                quantizers[piece[:2]].keep_float(piece.blocks)
        yield
    finally:
        for (quantizer, mode), piece in zip(before, part.pieces):
            quantizer.mode = mode
            if piece.blocks is not None:
                quantizer.keep_float(None)


@contextmanager
def only_part(model: nn.Module, part: Part) -> Iterator[None]:
    """Let everything pass in float but the slots of a part. Restored at the end."""
    quantizers = _by_slot(model)
    with quantizer_mode(model, 'float'):
        for piece in part.pieces:
            quantizers[piece[:2]].mode = 'quantize'
        yield


def plan_without(plan: QuantPlan, part: Part) -> QuantPlan:
    """Return a plan with a part in float, for training; ``plan`` stays as it is.

    It is not strict: a product with a part in float runs on floats.
    """
    plan = dataclasses.replace(copy.deepcopy(plan), strict=False)
    for piece in part.pieces:
        config = plan.slots[piece.module][piece.slot]
        _check_whole(config.get('float_part'), piece)
        changed = None if piece.blocks is None else dict(config, float_part=piece.blocks)
        plan.slots[piece.module][piece.slot] = changed
        if changed is None:
            plan.reasons[f'{piece.module}.{piece.slot}'] = f'all but {part.name}'
    return plan


def leave_one_out(model: nn.Module, parts: Iterable[Part], score: Callable, base) -> List[Variant]:
    """Return a :class:`Variant` for each part, in their order; calibration is that of the fully quantised model.

    Args:
        model (nn.Module): quantised and calibrated.
        parts (iterable of Part): from :func:`vvq_mm.analysis.parts.choose_parts`.
        score (callable): evaluates ``model`` as it is now; returns an object with ``top1`` and ``loss``.
        base: score of the fully quantised model.
    """
    rows = []
    for part in parts:
        with part_in_float(model, part):
            now = score()
        rows.append(Variant(part.name, weight_share(model, part), now.top1, now.loss, now.top1 - base.top1,
                            base.loss - now.loss))
    return rows


def weight_share(model: nn.Module, part: Part) -> float:
    """Return the share of the quantised weights that are in a part."""
    sizes = {name: module.weight.numel() for name, module, slot, _ in iter_quantizers(model) if slot == 'weight'}
    own = [sizes[piece.module] * (len(piece.blocks['members']) / piece.blocks['groups'] if piece.blocks else 1)
           for piece in part.pieces if piece.slot == 'weight']
    return sum(own) / max(sum(sizes.values()), 1)


def _by_slot(model: nn.Module) -> Dict[Tuple[str, str], Quantizer]:
    return {(name, slot): quantizer for name, _, slot, quantizer in iter_quantizers(model)}


def _check_whole(float_part, piece: Piece) -> None:
    if float_part is not None:
        raise QuantizationError(f'expected a slot that is quantised as a whole, got {piece.module} ({piece.slot}) with '
                                'a float_part; give the config without it')
