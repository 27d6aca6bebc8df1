"""Modes: how many of the data's classes a generator draws, and how evenly."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Modes:
    """How many classes occur (`count`) of how many there are (`of`), and how frequencies differ.

    `divergence` is KL(generated ‖ data) in nats, over the classes that occur (Metz et al. 2017, §3.3;
    Srivastava et al. 2017, §4.2).
    """

    count: int
    of: int
    divergence: float


def modes(generated: NDArray[np.int64], data: NDArray[np.int64]) -> Modes:
    """The data's classes among generated images, by the labels [n] of these and [m] of the data.

    Generated images of a class that the data lacks are left out; if none is left, `divergence` is
    infinite.
    """
    classes, data_counts = np.unique(data, return_counts=True)
    place = np.searchsorted(classes, generated).clip(max=len(classes) - 1)
    counts = np.bincount(place[classes[place] == generated], minlength=len(classes))
    if not counts.any():
        return Modes(0, len(classes), float("inf"))
    there = counts > 0
    shares = counts[there] / counts.sum()
    expected = data_counts[there] / data_counts.sum()
    divergence = float((shares * np.log(shares / expected)).sum())
    return Modes(int(there.sum()), len(classes), max(divergence, 0.0))
