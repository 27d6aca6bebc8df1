"""How workers share the images of a measurement: any number of workers gets the same result."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Rounding depends on which images go through a network together. Blocks of 64 fill whole batches of
# samplers (64) and of feature networks (16), so batches are the same for any number of workers.
BLOCK = 64


def share(count: int, worker: int, workers: int) -> NDArray[np.int64]:
    """A worker's image numbers, out of 0 … count − 1: every `workers`-th block of 64."""
    if not 0 <= worker < workers:
        raise ValueError(f"worker {worker} of {workers}: give 0 to {workers - 1}")
    numbers = np.arange(count)
    return numbers[numbers // BLOCK % workers == worker]


def join(parts: Sequence[NDArray]) -> NDArray:
    """The results of all workers' shares, given in the order of workers, in the order of numbers.

    ValueError if the parts do not fit shares of one count.
    """
    count = sum(map(len, parts))
    whole = np.empty((count, *parts[0].shape[1:]), parts[0].dtype)
    for worker, part in enumerate(parts):
        places = share(count, worker, len(parts))
        if len(places) != len(part):
            raise ValueError(
                f"worker {worker} of {len(parts)} gave {len(part)} of {count} images, its share is"
                f" {len(places)}"
            )
        whole[places] = part
    return whole
