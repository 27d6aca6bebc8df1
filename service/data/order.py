"""Which sample comes when: a pure function of seed, sizes and the global sample number.

An epoch's shards are permuted, laid end to end, rotated, and cut into lanes; inside a lane windows
of samples are shuffled. Any worker finds any sample by arithmetic, so resuming replays nothing.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from service import philox
from service.data.index import Index
from service.errors import DataError


@dataclass(frozen=True)
class Place:
    """Where a sample number falls: the window of a lane in an epoch, and the place inside it."""

    epoch: int
    lane: int
    window: int
    inside: int


class Order:
    """The order of some of an index's samples (`rows`), in `lanes`, by windows of `window`."""

    def __init__(self, index: Index, rows: NDArray[np.int64], seed: int, lanes: int, window: int):
        if lanes > len(rows):
            raise DataError(
                f"data.lanes: {lanes}, but there are {len(rows)} samples; take at most so many"
            )
        self.rows = rows
        self.seed = seed
        self.lanes = lanes
        self.window = window
        self.lane_samples = len(rows) // lanes
        self._counts = np.bincount(index.shard[rows], minlength=len(index.shards))
        self._starts = np.concatenate([[0], np.cumsum(self._counts)])
        self._epoch = lru_cache(maxsize=4)(self._make_epoch)

    def place(self, number: int) -> Place:
        """Where global sample `number` falls."""
        lane, position = number % self.lanes, number // self.lanes
        epoch, within = divmod(position, self.lane_samples)
        window, inside = divmod(within, self.window)
        return Place(epoch, lane, window, inside)

    def window_rows(self, epoch: int, lane: int, window: int) -> NDArray[np.int64]:
        """The index rows of a window, in the order in which they are shown."""
        first = window * self.window
        size = min(self.window, self.lane_samples - first)
        shards, ends, rotation = self._epoch(epoch)
        start = lane * self.lane_samples + first + rotation
        sequence = (start + np.arange(size)) % len(self.rows)
        which = np.searchsorted(ends, sequence, side="right")
        inside = sequence - (ends[which] - self._counts[shards[which]])
        rows = self.rows[self._starts[shards[which]] + inside]
        shuffle = philox.key("window", self.seed, epoch, lane, window)
        return rows[philox.permutation(shuffle, size)]

    def windows_of_lane(self) -> int:
        """Windows in one lane of one epoch."""
        return -(-self.lane_samples // self.window)

    def following(self, place: Place) -> tuple[int, int, int]:
        """Epoch, lane and number of the window that a lane comes to next."""
        if place.window + 1 < self.windows_of_lane():
            return place.epoch, place.lane, place.window + 1
        return place.epoch + 1, place.lane, 0

    def _make_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """The epoch's shards in order, where each ends in the sequence, and the rotation."""
        shards = philox.permutation(philox.key("shards", self.seed, epoch), len(self._counts))
        ends = np.cumsum(self._counts[shards])
        word = philox.words(philox.key("rotation", self.seed), np.array([epoch]), 1)
        return shards, ends, int(philox.integers(word, len(self.rows))[0, 0])


def at(
    index: Index, seed: int, lanes: int, window: int, number: int, held_out: bool = False
) -> tuple[int, int]:
    """(shard, row of the index) of global sample `number`."""
    order = Order(index, index.rows(held_out), seed, lanes, window)
    place = order.place(number)
    row = order.window_rows(place.epoch, place.lane, place.window)[place.inside]
    return int(index.shard[row]), int(row)
