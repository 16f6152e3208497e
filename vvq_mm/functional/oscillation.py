"""How often each weight's code turns back: a few bytes per weight, updated in place.

A weight oscillates when its code moves against the direction of its last move (arXiv 2203.11086, section 2.2). With
:math:`o_t` 1 on such a step and 0 otherwise, the frequency is :math:`f_t = m o_t + (1 - m) f_{t-1}`.
"""
from dataclasses import dataclass, fields
from typing import Dict, Optional

import torch
from torch import Tensor


@dataclass
class OscillationState:
    """What is remembered of a weight tensor; all tensors have its shape, 6 bytes per weight.

    Args:
        codes (Tensor): int8, the codes at the last update.
        direction (Tensor): int8, sign of the last move of each code: -1, 1, or 0 if it never moved.
        frequency (Tensor): float32 in [0, 1], running mean of "turned back in this step".
        mean_codes (Tensor, optional): float32, running mean of the codes; kept only where weights are to be frozen.
    """

    codes: Tensor
    direction: Tensor
    frequency: Tensor
    mean_codes: Optional[Tensor] = None

    def to_dict(self, device: str = 'cpu') -> Dict[str, Tensor]:
        """Return the tensors by name, copied to ``device``."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor.to(device, copy=True) for name, tensor in tensors.items() if tensor is not None}

    @classmethod
    def from_dict(cls, tensors: Dict[str, Tensor], device: str = 'cpu') -> 'OscillationState':
        """Return the state of :meth:`to_dict`, copied to ``device``."""
        return cls(**{name: tensor.to(device, copy=True) for name, tensor in tensors.items()})


def init_state(codes: Tensor, freezing: bool = False) -> OscillationState:
    """Return the state of weights that never moved.

    Args:
        codes (Tensor): int8, the present codes; copied.
        freezing (bool): whether the running mean of the codes is kept, 4 bytes more per weight. Defaults to False.
    """
    return OscillationState(codes=codes.clone(), direction=torch.zeros_like(codes),
                            frequency=torch.zeros(codes.shape, device=codes.device),
                            mean_codes=codes.float() if freezing else None)


@torch.no_grad()
def update_(state: OscillationState, codes: Tensor, momentum: float) -> Tensor:
    """Take one step's codes into ``state`` and return how many codes moved, a 0-dim int64 tensor on their device.

    Args:
        state (OscillationState): changed in place.
        codes (Tensor): int8, the codes after this step.
        momentum (float): weight of this step in the running means, in (0, 1].

    Example:
        >>> state = init_state(torch.tensor([0], dtype=torch.int8))
        >>> for code in (1, 0, 1):
        ...     moved = update_(state, torch.tensor([code], dtype=torch.int8), momentum=0.5)
        >>> state.frequency
        tensor([0.7500])
    """
    # by comparison, because the difference of two 8-bit codes does not fit into int8; bool and int8 share their bits.
    # All that follows is int8 arithmetic, which CPUs run ten times faster than what makes or reads booleans.
    direction = (codes > state.codes).view(torch.int8) - (codes < state.codes).view(torch.int8)
    turned = (direction * state.direction).clamp_(max=0).neg_()
    state.frequency.lerp_(turned.to(state.frequency.dtype), momentum)
    if state.mean_codes is not None:
        state.mean_codes.lerp_(codes.to(state.mean_codes.dtype), momentum)
    moved = direction.abs()
    state.direction.mul_(1 - moved).add_(direction)
    state.codes.copy_(codes)
    return moved.count_nonzero()
