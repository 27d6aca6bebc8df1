"""The bytes of samples: a window of them in one ranged read, or one for each shard that it touches."""

import numpy as np
from numpy.typing import NDArray

from service.data.index import Index
from service.errors import DataError
from service.storage import Storage


def read_samples(storage: Storage, index: Index, rows: NDArray[np.int64]) -> list[bytes]:
    """The encoded images of these rows, in their order; DataError where a shard has too few bytes.

    Rows of one shard are read in one request if they lie close together, as those of a window do.
    """
    found: dict[int, bytes] = {}
    for group in _neighbours(index, np.sort(rows)):
        start = int(index.offset[group[0]])
        end = int(index.offset[group[-1]] + index.size[group[-1]])
        name = index.names[index.shard[group[0]]]
        data = storage.get(name, start, end - start)
        if len(data) != end - start:
            raise DataError(
                f"{storage.url(name)}: bytes {start} to {end} wanted, {len(data)} read: the shard is"
                " cut short; copy it again or pack again"
            )
        for row in group:
            at = int(index.offset[row]) - start
            found[int(row)] = data[at : at + int(index.size[row])]
    return [found[int(row)] for row in rows]


def _neighbours(index: Index, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Sorted rows cut where the shard changes, or where more rows lie between than are wanted."""
    gap = (np.diff(index.shard[rows]) != 0) | (np.diff(rows) > len(rows))
    return np.split(rows, np.flatnonzero(gap) + 1)
