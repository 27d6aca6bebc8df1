"""How many different images a generator can draw, from how often two of its images are the same."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.metrics.distances import Features, squared_distances

# Rounding must not make a pair nearer than the real pair that it equals.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Birthday:
    """The birthday paradox as a measure (Arora et al. 2018).

    `pairs` of the generated images are nearer in features than any two different held-out images.
    `support` is n(n − 1) / 2 / pairs: uniform draws from so many images hold so many pairs of equals.
    Without pairs it is n(n − 1) / 2, and a lower bound. `distance` is that of the nearest held-out pair.
    """

    support: float
    pairs: int
    distance: float


def birthday(generated: Features, held_out: Features) -> Birthday:
    """The size of the support of generated [n, d], n at least 2, with held-out [m, d] as the measure.

    Equal held-out images count as one. Without two different ones `distance` is 0, and nothing nearer.
    """
    possible = len(generated) * (len(generated) - 1) // 2
    smallest = min((_smallest(squares) for _, squares in squared_distances(held_out, held_out)))
    nearest = smallest if np.isfinite(smallest) else 0.0
    pairs = 0
    for block, squares in squared_distances(generated, generated):
        squares[_is_earlier(block, len(generated))] = np.inf
        pairs += int((squares < nearest * (1 - _ROUNDING)).sum())
    return Birthday(possible / max(pairs, 1), pairs, float(np.sqrt(nearest)))


def nearest_pairs(features: Features, count: int) -> NDArray[np.int64]:
    """The nearest pairs of images, nearest first: their numbers [count or fewer, 2]."""
    found, distances = np.empty((0, 2), np.int64), np.empty(0)
    for block, squares in squared_distances(features, features):
        squares[_is_earlier(block, len(features))] = np.inf
        places = np.argpartition(squares, min(count, squares.size) - 1, axis=None)[:count]
        rows, columns = np.unravel_index(places, squares.shape)
        found = np.concatenate([found, np.stack([rows + block.start, columns], 1)])
        distances = np.concatenate([distances, squares.ravel()[places]])
        order = np.argsort(distances, kind="stable")[:count]
        found, distances = found[order], distances[order]
    return found[np.isfinite(distances)]


def _smallest(squares: NDArray[np.float64]) -> float:
    return float(squares.min(where=squares > 0, initial=np.inf))


def _is_earlier(block: slice, count: int) -> NDArray[np.bool_]:
    """Whether a pair [rows, count] is an image with itself, or counted in the row of the other."""
    return np.arange(count) <= np.arange(block.start, block.stop)[:, None]
