"""What every quantizer is: a scale, perhaps an offset, the rules for loading them, and codes beside values."""
from typing import Optional

import torch
from torch import Tensor, nn

from vvq_mm.errors import QuantizationError, QuantizerNotReady
from vvq_mm.functional.fake_quant import dequantize, positive_scale, quantize
from vvq_mm.functional.grid import IntGrid
from vvq_mm.functional.groups import check_groups, expand_groups
from vvq_mm.functional.scale_init import RULES, Statistics, initial_scale

from .observer import Observer

MODES = ('quantize', 'float', 'observe')


class Quantizer(nn.Module):
    """Base of all quantizers; a subclass writes :meth:`fake_quantize`.

    Args:
        bits (int): width of the codes, 2 to 8.
        signed (bool): whether codes may be negative. Defaults to True.
        offset (bool): whether code 0 stands for a learned value instead of 0. Defaults to False.
        groups (int): number of scales. Defaults to 1.
        axis (int): the axis of the tensor that the groups divide. Defaults to 0.
        kind (str): ``weight`` or ``act``. Defaults to ``weight``.
        init (str): first scale: ``mse``, ``percentile``, ``lsq`` or ``official``. Defaults to ``mse``.
        float_part (dict, optional): a part of the tensor that passes unchanged, ``dict(groups=, axis=, members=)``: of
            the equal blocks into which ``groups`` divides ``axis``, those numbered in ``members``. Scales are shared as
            without it. Defaults to None.
        where (str): the module and slot, named in errors.

    State dict: ``scale`` and ``offset`` (groups,) float32, ``code_range`` (2,) and ``initialized`` int32, and
    ``frozen`` (half, shape of the weight, NaN = free) once weights are frozen. ``mode`` is ``quantize``, ``float``
    (pass through) or ``observe``.
    """

    def __init__(self, bits: int, signed: bool = True, offset: bool = False, groups: int = 1, axis: int = 0,
                 kind: str = 'weight', init: str = 'mse', where: str = 'a quantizer',
                 float_part: Optional[dict] = None) -> None:
        super().__init__()
        if init not in RULES:
            raise QuantizationError(f'expected init to be one of {", ".join(RULES)}, got {init!r} for {where}')
        self.grid = IntGrid.of(bits, signed, where)
        self.bits, self.signed, self.groups, self.axis = bits, signed, groups, axis
        self.kind, self.init, self.where = kind, init, where
        self.scale = nn.Parameter(torch.ones(groups))
        self.offset = nn.Parameter(torch.zeros(groups)) if offset else None
        self.register_buffer('code_range', torch.tensor(self.grid, dtype=torch.int32))
        self.register_buffer('initialized', torch.tensor(0, dtype=torch.int32))
        self.register_buffer('frozen', None)
        self.keep_float(float_part)
        self.ready = False
        self.loaded_grid: Optional[IntGrid] = None
        self.mode = 'quantize'
        self.observer: Optional[Observer] = None

    @property
    def qmin(self) -> int:
        return self.grid.qmin

    @property
    def qmax(self) -> int:
        return self.grid.qmax

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == 'float':
            return x
        if self.mode == 'observe':
            if self.groups > 1:
                check_groups(x.shape[self.axis], self.groups, self.where)
            self.observer.update(x)
            return x
        if not self.ready:
            raise QuantizerNotReady(f'expected a calibrated scale, got none for {self.where}; call '
                                    "vvq_mm.calibrate(model, batches), add dict(type='vvq_mm.CalibrateHook') to "
                                    'custom_hooks, or load a quantised checkpoint')
        y = self.fake_quantize(x)
        if self.frozen is not None:
            held = dequantize(self.frozen.float(), self.current_scale(), self.offset, self.axis).to(y.dtype)
            y = torch.where(self.frozen.isnan(), y, held)
        return y if self.in_float is None else torch.where(self.float_mask(x), x, y)

    def keep_float(self, part: Optional[dict]) -> None:
        """Let a part of the tensor pass unchanged from now on (see ``float_part``); None quantises all of it again.

        Raises:
            QuantizationError: the part is not written as above, or its blocks do not exist.
        """
        self.float_part = part
        self.register_buffer('in_float', None if part is None else _flags(part, self.where), persistent=False)
        if part is not None:
            self.in_float = self.in_float.to(self.scale.device)

    def float_mask(self, x: Tensor) -> Tensor:
        """Return which elements of ``x`` pass unchanged, bool, in the shape that broadcasts against ``x``."""
        axis = self.float_part['axis']
        check_groups(x.shape[axis], len(self.in_float), self.where)
        return expand_groups(self.in_float, x.shape, axis)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return ``x`` on the grid, differentiable; written by subclasses."""
        raise NotImplementedError

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """Return the integer codes of ``x`` (int8; uint8 for 8 unsigned bits), frozen weights at their frozen code."""
        if self.in_float is not None:
            raise QuantizationError(f'expected a tensor that is quantised as a whole, got {self.where} with a '
                                    'float_part, which has no codes')
        codes = quantize(x, self.current_scale(), self.offset, self.grid, self.axis)
        if self.frozen is not None:
            codes = torch.where(self.frozen.isnan(), codes, self.frozen.to(codes.dtype))
        return codes.to(torch.int8 if self.qmax < 128 else torch.uint8)

    def current_scale(self) -> Tensor:
        """Return the scale (groups,) of this moment, differentiable; a subclass may derive it from its parameter."""
        return self.scale

    def effective_scale(self) -> Tensor:
        """Return the positive scale that forward uses, (groups,), detached."""
        return positive_scale(self.current_scale())

    def expanded_scale(self, x: Tensor) -> Tensor:
        """Return :meth:`effective_scale` in the shape that broadcasts against ``x``."""
        return expand_groups(self.effective_scale(), x.shape, self.axis)

    def expanded_offset(self, x: Tensor) -> Optional[Tensor]:
        """Return the offset, detached, in the shape that broadcasts against ``x``; None without one."""
        return None if self.offset is None else expand_groups(self.offset.detach(), x.shape, self.axis)

    @torch.no_grad()
    def initialise(self, statistics: Statistics) -> None:
        """Set scale and offset from statistics of the tensor; calibration calls this once, forward never."""
        scale, offset = initial_scale(self.init, statistics, self.grid, self.offset is not None, self.kind)
        if not torch.isfinite(scale).all():
            raise QuantizationError(f'expected finite values to calibrate on, got a scale of {scale.tolist()} for '
                                    f'{self.where}; check the checkpoint and the calibration images')
        self.scale.copy_(scale)
        if self.offset is not None:
            self.offset.copy_(offset)
        self.initialized.fill_(1)
        self.ready = True

    @torch.no_grad()
    def freeze(self, mask: Tensor, codes: Tensor) -> None:
        """Hold the weights of ``mask`` (bool) at ``codes`` from now on; what was frozen before keeps its code."""
        if self.frozen is None:
            self.frozen = torch.full(mask.shape, float('nan'), dtype=torch.half, device=mask.device)
        new = mask & self.frozen.isnan()
        self.frozen = torch.where(new, codes.to(torch.half), self.frozen)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Load what fits: a float checkpoint leaves the quantizer uncalibrated, other bits drop the scale.

        Raises:
            QuantizationError: the checkpoint has another granularity, or an offset where this quantizer has none.
        """
        saved = {name: state_dict.get(prefix + name) for name in ('scale', 'offset', 'frozen')}
        if saved['scale'] is None:
            self._forget()
            return
        self._check_fits(saved)
        self.frozen = None if saved['frozen'] is None else torch.empty_like(saved['frozen'], device=self.scale.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.ready = bool(self.initialized.item())
        loaded = IntGrid(*self.code_range.tolist())
        if loaded != self.grid:
            self._forget(loaded)

    def _forget(self, loaded: Optional[IntGrid] = None) -> None:
        """Return to the state before calibration; ``loaded`` is the grid of a checkpoint whose scale was dropped."""
        self.initialized.fill_(0)
        self.code_range.copy_(torch.tensor(self.grid))
        self.ready, self.frozen, self.loaded_grid = False, None, loaded

    def _check_fits(self, saved: dict) -> None:
        """Raise unless the saved quantizer has the same groups and an offset exactly if this one has."""
        if saved['scale'].shape != self.scale.shape:
            raise QuantizationError(f'expected {self.groups} scale(s) for {self.where}, the checkpoint has '
                                    f'{saved["scale"].numel()}: it was made with another granularity; use its policy, '
                                    'or load the full-precision checkpoint')
        if (saved['offset'] is None) != (self.offset is None):
            raise QuantizationError(f'expected {"no" if self.offset is None else "an"} offset for {self.where}, the '
                                    f'checkpoint has {"none" if saved["offset"] is None else "one"}; use the policy '
                                    'that it was made with')

    def extra_repr(self) -> str:
        sign = 'signed' if self.signed else 'unsigned'
        groups = 'per tensor' if self.groups == 1 else f'{self.groups} groups on axis {self.axis}'
        parts = [f'{self.bits} bit', sign, groups]
        if self.offset is not None:
            parts.append('offset')
        if self.float_part is not None:
            parts.append(f'{len(self.float_part["members"])} of {self.float_part["groups"]} blocks in float')
        return ', '.join(parts + ['ready' if self.ready else 'not calibrated'])


def _flags(part: dict, where: str) -> Tensor:
    """Return which of the blocks of a ``float_part`` pass unchanged, bool (groups,)."""
    groups, axis, members = (part.get(key) for key in ('groups', 'axis', 'members'))
    whole = [groups, axis, *members] if isinstance(members, (list, tuple)) else [None]
    if not (all(isinstance(number, int) for number in whole) and members and set(members) <= set(range(groups))):
        raise QuantizationError('expected float_part to be dict(groups=, axis=, members=) with whole numbers, and at '
                                f'least one member from 0 to groups - 1, got {part} for {where}')
    return torch.tensor([number in members for number in range(groups)])
