"""Randomness as a pure function: hashes of (seed, epoch, index), and a scope that starts every generator from one."""
import random
from contextlib import contextmanager
from typing import Iterator, Union

import numpy as np
import torch

MASK = (1 << 64) - 1


def hash64(*words: Union[int, np.ndarray]) -> np.ndarray:
    """Return a 64-bit hash of the words by the splitmix64 mixer (Steele, Lea, Flood 2014).

    Arrays are hashed element by element. The hash is the same on every platform and library version, unlike the streams
    of numpy's or torch's generators.

    Args:
        *words (int | np.ndarray): integers, or integer arrays that broadcast.

    Returns:
        np.ndarray: uint64, at least one-dimensional.

    Example:
        >>> hex(int(hash64(0)[0]))
        '0xe220a8397b1dcdaf'
    """
    state = np.zeros(1, np.uint64)
    for word in words:
        word = np.array([word & MASK], np.uint64) if isinstance(word, int) else np.asarray(word).astype(np.uint64)
        state = (state ^ word) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


@contextmanager
def random_state(seed: int) -> Iterator[None]:
    """Start ``random``, ``np.random`` and torch's CPU generator from ``seed`` inside, and put them back afterwards.

    Args:
        seed (int): 64 bits.

    Example:
        >>> with random_state(1):
        ...     first = random.random()
        >>> with random_state(1):
        ...     first == random.random()
        True
    """
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    seed &= MASK
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would touch the accelerators too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
