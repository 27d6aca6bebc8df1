"""An order of images that follows from what they show, not from how they came."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.random import philox

_PART = 256


def settled(rows: NDArray[Any]) -> NDArray[np.int64]:
    """The indices of rows [n, …] in an order that any permutation of them shares; equal rows may swap.

    Rows are sorted along a random direction, and then shuffled, so that a part of them is a fair sample,
    and neighbours have nothing in common.
    """
    count = len(rows)
    flat = rows.reshape(count, -1)
    words = philox.words(philox.key("settled"), np.arange(flat.shape[1]), 1)[:, 0]
    direction = words / 2.0**32 - 0.5
    places = np.empty(count)
    for start in range(0, count, _PART):
        part = flat[start : start + _PART].astype(np.float64)
        places[start : start + _PART] = (part * direction).sum(1)
    return np.argsort(places, kind="stable")[philox.permutation(philox.key("shuffled"), count)]
