"""How workers share out the images of a measurement: any number of them comes to the same answer."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Rounding depends on which images go through a network together. Blocks of 64 fill whole batches of
# samplers (64) and of feature networks (16), so those are the same ones on any number of workers.
BLOCK = 64


def share(count: int, worker: int, workers: int) -> NDArray[np.int64]:
    """Numbers, of 0 … count − 1, of the images that fall to a worker: every `workers`-th block of 64."""
    if not 0 <= worker < workers:
        raise ValueError(f"worker {worker} of {workers}: give 0 to {workers - 1}")
    numbers = np.arange(count)
    return numbers[numbers // BLOCK % workers == worker]


def join(parts: Sequence[NDArray]) -> NDArray:
    """What the workers made of their shares, in the order of workers, put in the order of numbers.

    ValueError where the parts are not of shares of one count.
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
