"""How near latent weights lie to the borders between codes, and how often the codes of those turn back."""
from typing import Dict, Iterable, List, NamedTuple, Optional

import torch
from torch import Tensor

from vvq_mm.functional.grid import IntGrid

EDGES = tuple(index / 20 for index in range(11))  # of the classes of distances, in codes; 0.5 is the middle of a bin
NEAR = 0.1  # one of them: a weight no further from a border than this is near it


def border_distance(positions: Tensor, grid: IntGrid) -> Tensor:
    """Return how far latent weights are from the nearest border between two codes, in codes.

    Borders lie halfway between neighbouring codes. On the grid the distance is at most 0.5, on a code itself. A weight
    beyond the last code rounds to it all the same; its distance is that to the last border, and exceeds 0.5.

    Args:
        positions (Tensor): floating point, latent weights in units of codes: (weight - offset) / scale.
        grid (IntGrid): limits of the codes.

    Example:
        >>> border_distance(torch.tensor([-0.5, 0., 0.75, 3.]), IntGrid(-2, 1))
        tensor([0.0000, 0.5000, 0.2500, 2.5000])
    """
    border = positions.floor().clamp(grid.qmin, grid.qmax - 1) + 0.5
    return (positions - border).abs()


class Flips(NamedTuple):
    """Weights of one or more layers, and what they do, by distance from the nearest border.

    There is a class for each two neighbours in ``EDGES``, with the upper edge in it (the first also has 0), and a last
    one for the weights beyond the last code. Each tensor is (11,).

    Args:
        weights (Tensor): int64, number of weights.
        frequency (Tensor): float64, sum of their frequencies.
        oscillating (Tensor): int64, number of those that oscillate.
    """

    weights: Tensor
    frequency: Tensor
    oscillating: Tensor

    def summary(self) -> Dict[str, float]:
        """Return ``weights`` (number), the shares of them that are ``oscillating``, ``near`` a border and ``beyond``
        the last code, their mean ``frequency``, and the share of the oscillating that is near (None without any)."""
        near = EDGES.index(NEAR)
        count, turning = self.weights.sum().item(), self.oscillating.sum().item()
        return dict(weights=count, oscillating=turning / count, frequency=self.frequency.sum().item() / count,
                    near=self.weights[:near].sum().item() / count, beyond=self.weights[-1].item() / count,
                    near_of_oscillating=self.oscillating[:near].sum().item() / turning if turning else None)

    def by_distance(self) -> Dict[str, List[Optional[float]]]:
        """Return, by class, the share of all ``weights``, the mean ``frequency`` and the share ``oscillating``.

        The mean of a class without weights is None.
        """
        count = self.weights.tolist()
        return dict(weights=(self.weights / self.weights.sum()).tolist(),
                    frequency=_means(self.frequency.tolist(), count),
                    oscillating=_means(self.oscillating.tolist(), count))


def flips_by_distance(positions: Tensor, frequency: Tensor, grid: IntGrid, threshold: float) -> Flips:
    """Count the weights of a layer by their distance from the nearest border.

    Args:
        positions (Tensor): floating point, latent weights in units of codes.
        frequency (Tensor): of the same shape, in [0, 1], how often a weight's code turns back
            (:class:`vvq_mm.functional.oscillation.OscillationState`).
        grid (IntGrid): limits of the codes.
        threshold (float): a weight oscillates if its frequency exceeds this.

    Example:
        >>> flips = flips_by_distance(torch.tensor([0.48, 0.1, 1.2]), torch.zeros(3), IntGrid(-2, 1), threshold=0.005)
        >>> flips.weights.tolist()
        [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1]
    """
    distance, frequency = border_distance(positions, grid).flatten(), frequency.flatten()
    index = torch.bucketize(distance, torch.tensor(EDGES[1:], dtype=distance.dtype))
    classes = len(EDGES)
    return Flips(torch.bincount(index, minlength=classes),
                 torch.bincount(index, frequency.double(), minlength=classes),
                 torch.bincount(index[frequency > threshold], minlength=classes))


def add_flips(flips: Iterable[Flips]) -> Flips:
    """Return the :class:`Flips` of several layers together."""
    return Flips(*(torch.stack(parts).sum(0) for parts in zip(*flips)))


def _means(sums: List[float], counts: List[int]) -> List[Optional[float]]:
    return [total / count if count else None for total, count in zip(sums, counts)]
