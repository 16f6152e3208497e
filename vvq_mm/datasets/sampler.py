"""The order of the training data as a pure function of (seed, epoch), with a place to go on from."""
import math
from typing import Iterator, NamedTuple, Optional, Sized

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from vvq_mm.functional.seeding import hash64
from vvq_mm.registry import DATA_SAMPLERS


_ORDER, _DRAW = 0, 1  # two independent streams of the same hash


class Draw(NamedTuple):
    """One visit of an image.

    Args:
        index (int): of the image in the data set.
        seed (int): 64 bits, for everything random about this visit; a pure function of (run seed, epoch, index).
    """

    index: int
    seed: int


@DATA_SAMPLERS.register_module()
class ResumableSampler(Sampler):
    """Yields :class:`Draw` in an order that depends on seed and epoch alone, whatever ran before.

    To go on in the middle of an epoch, set ``start`` to the number of samples that this rank has already seen of it:
    the next pass leaves them out, the ones after it are whole again.

    Args:
        dataset (Sized): the data set.
        seed (int, optional): of the run, equal on all ranks. None agrees on a random one.
        shuffle (bool): whether the order is random. The seeds of the draws change with the epoch in any case. Defaults
            to True.
        round_up (bool): whether first samples are repeated until every rank has equally many. Defaults to True.

    Example:
        >>> sampler = ResumableSampler(range(4), seed=2)
        >>> [draw.index for draw in sampler]
        [2, 3, 0, 1]
        >>> sampler.start = 3
        >>> [draw.index for draw in sampler], len(sampler)
        ([1], 4)
    """

    def __init__(self, dataset: Sized, seed: Optional[int] = None, shuffle: bool = True, round_up: bool = True) -> None:
        self.dataset, self.shuffle, self.round_up = dataset, shuffle, round_up
        self.rank, self.world_size = get_dist_info()
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[Draw]:
        """Return the draws of this rank from ``start`` on; taking the iterator sets ``start`` back to 0."""
        if not 0 <= self.start <= len(self):
            raise ValueError(f'expected ResumableSampler.start from 0 to {len(self)} samples of rank {self.rank}, got '
                             f'{self.start}; resume with the data set, batch size and number of processes that the '
                             'checkpoint was made with')
        indices = self.indices()[self.start:]
        self.start = 0
        seeds = hash64(self.seed, self.epoch, _DRAW, indices)
        return map(Draw, indices.tolist(), seeds.tolist())

    def indices(self) -> np.ndarray:
        """Return all indices of this rank in this epoch, int64."""
        order = np.arange(len(self.dataset))
        if self.shuffle:
            order = np.argsort(hash64(self.seed, self.epoch, _ORDER, order), kind='stable')
        if self.round_up:
            order = np.resize(order, math.ceil(len(order) / self.world_size) * self.world_size)
        return order[self.rank::self.world_size]

    def __len__(self) -> int:
        """Number of samples of this rank in a whole epoch, wherever the next pass starts."""
        missing = 0 if self.round_up else self.rank
        return max(math.ceil((len(self.dataset) - missing) / self.world_size), 0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; MMEngine's ``DistSamplerSeedHook`` calls this before each one."""
        self.epoch = epoch
