"""Variation: how far magnitudes, tails and outliers differ between the modules, channels and heads of a model.

Pure functions on moments come first, then the sites at which a model is looked at. A site is a slot of
:mod:`vvq_mm.layers`: the weight and the input of a linear layer or convolution, and the operands of an attention.
"""
import logging
import math
from contextlib import contextmanager
from typing import Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from vvq_mm.errors import QuantizationError
from vvq_mm.functional.groups import split_groups
from vvq_mm.layers import SlotMixin, attention_mixin
from vvq_mm.policy import quantisable
from vvq_mm.policy.granularity import resolve_granularity
from vvq_mm.surgery import iter_quantizers, quantize_, quantizer_mode, unquantize_

SIGMA = 3.0  # standard deviations from the mean beyond which a value is an outlier; of a normal, 0.27 % are
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
ROUNDING = 1e-12  # a spread below this share of the magnitude is rounding in float64
MEASURES = ('magnitude', 'std', 'kurtosis', 'outliers')
_PROBE = dict(type='LSQQuantizer', bits=8)  # only ever in mode `float`: it passes its input on, and is a place to look


class Moments(NamedTuple):
    """What a tensor's groups leave behind, enough to add more elements later; all (G,) float64.

    Args:
        count (Tensor): elements.
        absolute (Tensor): sum of absolute values.
        mean (Tensor): arithmetic mean.
        second, third, fourth (Tensor): sums of powers of the distance from the mean.
    """

    count: Tensor
    absolute: Tensor
    mean: Tensor
    second: Tensor
    third: Tensor
    fourth: Tensor

    @property
    def magnitude(self) -> Tensor:
        """Mean absolute value, (G,)."""
        return self.absolute / self.count

    @property
    def std(self) -> Tensor:
        """Standard deviation around the mean, divided by the number of elements, (G,)."""
        return (self.second / self.count).sqrt()

    @property
    def kurtosis(self) -> Tensor:
        """Pearson's kurtosis, the mean fourth power in standard units, (G,): normal 3, uniform 1.8; constant NaN."""
        constant = self.std <= ROUNDING * self.magnitude
        return torch.where(constant, torch.nan, self.count * self.fourth / self.second**2)


def moments(groups: Tensor) -> Moments:
    """Return the :class:`Moments` of each row.

    Args:
        groups (Tensor): (G, n), any float dtype; counted in float64.

    Example:
        >>> moments(torch.tensor([[-1., 1., -1., 1.]])).kurtosis
        tensor([1.], dtype=torch.float64)
    """
    x = groups.double()
    mean = x.mean(1)
    distance = x - mean[:, None]
    square = distance**2
    return Moments(torch.full_like(mean, x.shape[1]), x.abs().sum(1), mean, square.sum(1), (square * distance).sum(1),
                   (square**2).sum(1))


def merge(parts: Moments, dim: int) -> Moments:
    """Return the moments of the union of groups, which lie along ``dim`` (Pebay, SAND2008-6212, 2008).

    Nothing cancels, so any number of batches can be merged one after the other.

    Example:
        >>> merge(moments(torch.tensor([[0., 1.], [2., 3.]])), dim=0).second  # of 0, 1, 2, 3
        tensor(5., dtype=torch.float64)
    """
    count = parts.count.sum(dim)
    mean = (parts.count * parts.mean).sum(dim) / count
    shift = parts.mean - mean.unsqueeze(dim)
    second = parts.second + parts.count * shift**2
    third = parts.third + 3 * shift * parts.second + parts.count * shift**3
    fourth = parts.fourth + 4 * shift * parts.third + 6 * shift**2 * parts.second + parts.count * shift**4
    return Moments(count, parts.absolute.sum(dim), mean, second.sum(dim), third.sum(dim), fourth.sum(dim))


def count_outliers(groups: Tensor, known: Moments, sigma: float = SIGMA) -> Tensor:
    """Return how many elements of each row lie more than ``sigma`` standard deviations from the mean, (G,) float64.

    Args:
        groups (Tensor): (G, n).
        known (Moments): of the rows, or of a larger sample of the same groups.
        sigma (float): in standard deviations. Defaults to 3.
    """
    distance = (groups.double() - known.mean[:, None]).abs()
    return (distance > sigma * known.std[:, None]).sum(1, dtype=torch.float64)


def sdam(magnitudes: Sequence[float]) -> float:
    """Return the standard deviation over modules of the mean absolute value, SDAM (arXiv 2307.00331).

    The sum of squares is divided by the number of modules, so one module has SDAM 0.

    Example:
        >>> sdam([1.0, 3.0])
        1.0
    """
    return torch.tensor(magnitudes, dtype=torch.float64).std(correction=0).item()


class Site:
    """One slot of one module: moments and outliers per tensor, per channel and per head.

    The first :meth:`add` of a tensor fixes the levels; all tensors are added once, then all are counted once.

    Args:
        model (nn.Module): the quantised model that the slot is in.
        name (str): the module's name.
        slot (str): ``weight``, ``input``, ``query``, ``key``, ``value`` or ``prob``.
    """

    def __init__(self, model: nn.Module, name: str, slot: str) -> None:
        self.model, self.name, self.slot = model, name, slot
        self.levels: Dict[str, Tuple[int, int]] = {}  # (groups, axis), as quantizers have them
        self.sums: Dict[int, Moments] = {}  # per axis, of its finest level
        self.beyond: Dict[str, Tensor] = {}
        self.shape: Optional[List[int]] = None

    def add(self, x: Tensor) -> None:
        """Add a tensor to the moments."""
        x = self._heads_last(x)
        if self.shape is None:
            self.shape, self.levels = list(x.shape), self._levels(x)
        for axis in {axis for _, axis in self.levels.values()}:
            groups = max(groups for groups, other in self.levels.values() if other == axis)
            new = moments(split_groups(x, groups, axis))
            old = self.sums.get(axis)
            self.sums[axis] = new if old is None else merge(Moments(*map(torch.stack, zip(old, new))), dim=0)

    def moments(self, level: str) -> Moments:
        """Return the moments of ``tensor``, ``channel`` or ``head``."""
        groups, axis = self.levels[level]
        return merge(Moments(*(value.view(groups, -1) for value in self.sums[axis])), dim=1)

    def count(self, x: Tensor, sigma: float) -> None:
        """Count the outliers of a tensor that was added."""
        x = self._heads_last(x)
        for level, (groups, axis) in self.levels.items():
            found = count_outliers(split_groups(x, groups, axis), self.moments(level), sigma)
            self.beyond[level] = self.beyond.get(level, 0) + found

    def _heads_last(self, x: Tensor) -> Tensor:
        """Return query, key or value as (B, N, heads * D), as the input of ``proj`` is; others as they are."""
        return x.transpose(1, 2).flatten(2) if self.slot in ('query', 'key', 'value') and x.ndim == 4 else x

    def _levels(self, x: Tensor) -> Dict[str, Tuple[int, int]]:
        """Return groups and axis of each level that this slot has; ``tensor`` is on the axis of the next finer one."""
        found = {word: _granularity(word, self.model, self.name, self.slot) for word in ('channel', 'head')}
        if self.slot in ('query', 'key', 'value') and x.ndim == 3:
            found = dict(channel=(x.shape[-1], -1), head=(found['head'][0], -1))
        found = {word: (groups, axis) for word, (groups, axis) in found.items()
                 if groups and x.ndim > axis and x.shape[axis] % groups == 0}
        return dict(tensor=(1, next(iter(found.values()), (1, 0))[1]), **found)


def _granularity(word: str, model: nn.Module, name: str, slot: str) -> Tuple[int, int]:
    """Return groups and axis as a quantizer would have them, (0, 0) where the slot has no such groups."""
    try:
        return resolve_granularity(word, model, name, slot)
    except QuantizationError:
        return 0, 0


@torch.no_grad()
def measure(model: nn.Module, images: Sequence[Tensor], sigma: float = SIGMA,
            track: Callable[[Iterable, str], Iterable] = lambda images, words: images) -> dict:
    """Return the variation of a model's weights and activations as plain data; see ``docs/analysis.md`` for the keys.

    Activations are passed twice: for their moments, then for what lies beyond; only the moments are kept. A float model
    is given quantizers that pass everything on, and loses them again. A quantised one is looked at where it is
    quantised: the weights are the latent ones, the activations those of the quantised network before rounding (of the
    float network while scales are missing).

    Args:
        model (nn.Module): any model of linear layers, convolutions and attentions; it is left in eval mode.
        images (sequence of Tensor): batches as the model takes them.
        sigma (float): see :func:`count_outliers`. Defaults to 3.
        track (callable, optional): wraps the batches of a pass, given with words for it; for a progress bar.

    Raises:
        QuantizationError: there is nothing to look at, or values are not finite.

    Example:
        >>> report = measure(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), [torch.randn(8, 4)])
        >>> [f"{site['module']} {site['slot']}" for site in report['sites']]
        ['0 weight', '0 input', '1 weight', '1 input']
    """
    model.eval()
    with probed(model, images[0]) as forward:
        sites = [(Site(model, name, slot), module, quantizer)
                 for name, module, slot, quantizer in iter_quantizers(model)]
        steps = dict(moments=lambda site, x: site.add(x), outliers=lambda site, x: site.count(x, sigma))
        for words, step in steps.items():
            for site, module, _ in sites:
                if site.slot == 'weight':
                    step(site, module.weight)
            with _watching(sites, step):
                for batch in track(images, words):
                    model(batch)
        seen = [site for site, *_ in sites if site.shape is not None]
        described = [describe(site) for site in seen]
    unused = [f'{site.name} ({site.slot})' for site, *_ in sites if site.shape is None]
    return dict(forward=forward, sigma=sigma, sdam={slot: _sdam(described, slot) for slot in ('weight', 'input')},
                sites=described, unused=unused)


@contextmanager
def probed(model: nn.Module, image: Tensor) -> Iterator[str]:
    """Let a model have quantizers for a while and yield what its forward is then: ``float`` or ``quantised``."""
    if any(isinstance(module, SlotMixin) for module in model.modules()):
        if all(quantizer.ready for *_, quantizer in iter_quantizers(model)):
            yield 'quantised'
            return
        with quantizer_mode(model, 'float'):
            yield 'float'
        return
    policy = dict(type='RulePolicy', weight=_PROBE, act=_PROBE)
    try:
        quantize_(model, policy)
        try:
            with quantizer_mode(model, 'float'):
                model(image[:1])
        except QuantizationError as error:  # an attention whose products are not the usual two
            unquantize_(model)
            attentions = [name for name in quantisable(model) if attention_mixin(model.get_submodule(name))]
            quantize_(model, dict(policy, rules=dict.fromkeys(attentions)))
            logging.getLogger('vvq_mm').warning(f'Operands of attentions are left out: {error}')
        with quantizer_mode(model, 'float'):
            yield 'float'
    finally:
        unquantize_(model)


@contextmanager
def _watching(sites: list, step: Callable[[Site, Tensor], None]) -> Iterator[None]:
    """Hand what reaches the quantizers of activations to ``step``."""
    handles = [quantizer.register_forward_pre_hook(lambda _, inputs, site=site: step(site, inputs[0]))
               for site, _, quantizer in sites if site.slot != 'weight']
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def describe(site: Site) -> dict:
    """Return what a site holds as plain data: numbers, quantiles over channels, and a list over heads.

    Raises:
        QuantizationError: it has seen values that are not finite.
    """
    values = {level: _measures(site, level) for level in site.levels}
    tensor = {name: value.item() for name, value in values['tensor'].items()}
    if not math.isfinite(tensor['std']):
        raise QuantizationError(f'expected finite values, got NaN or infinity in {site.name} ({site.slot}); check the '
                                'checkpoint and the images')
    described = dict(module=site.name, slot=site.slot, shape=site.shape,
                     elements=int(site.moments('tensor').count.item()), **tensor, channels=None, heads=None)
    if 'channel' in values:
        described['channels'] = {name: _quantiles(value) for name, value in values['channel'].items()}
        described['channels'].update(count=site.levels['channel'][0],
                                     constant=int(values['channel']['kurtosis'].isnan().sum()))
    if 'head' in values:
        groups = site.levels['head'][0]
        parts = ('query', 'key', 'value') if (site.slot, site.name.split('.')[-1]) == ('weight', 'qkv') else ('', )
        labels = [f'{part} {head}'.strip() for part in parts for head in range(groups // len(parts))]
        described['heads'] = dict(label=labels, **{name: value.tolist() for name, value in values['head'].items()})
    return described


def _measures(site: Site, level: str) -> Dict[str, Tensor]:
    """Return each measure of a level, (groups,)."""
    known = site.moments(level)
    return dict(zip(MEASURES, (known.magnitude, known.std, known.kurtosis, site.beyond[level] / known.count)))


def _quantiles(values: Tensor) -> List[float]:
    """Return the :data:`QUANTILES` of the values that are defined."""
    points = torch.tensor(QUANTILES, dtype=values.dtype, device=values.device)
    return values.nanquantile(points).tolist()


def _sdam(sites: List[dict], slot: str) -> dict:
    """Return SDAM over the modules with that slot, also as a share of their mean magnitude."""
    magnitudes = [site['magnitude'] for site in sites if site['slot'] == slot]
    spread, mean = sdam(magnitudes), sum(magnitudes) / max(len(magnitudes), 1)
    return dict(sdam=spread, mean=mean, relative=spread / mean if mean else float('nan'), modules=len(magnitudes))
