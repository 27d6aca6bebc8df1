"""Which sample comes when: a pure function of seed, sizes and the global sample number.

An epoch's shards are permuted, laid end to end, rotated, and cut into lanes; inside a lane, windows of
samples are shuffled. Any worker finds any sample by arithmetic, so resuming replays nothing.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.data.index import Index
from service.errors import DataError
from service.random import philox

_EPOCHS_KEPT = 4


class WindowKey(NamedTuple):
    """Which window: the epoch, the lane, and the number in that lane."""

    epoch: int
    lane: int
    window: int


class Place(NamedTuple):
    """Where a sample number lies: a window, and the place inside it."""

    window: WindowKey
    inside: int


class Order:
    """The order of an index's samples `rows`, in `lanes` lanes and windows of `window` samples."""

    def __init__(self, index: Index, rows: NDArray[np.int64], seed: int, lanes: int, window: int):
        if lanes > len(rows):
            raise DataError(
                f"data.lanes: {lanes}, but there are only {len(rows)} samples; use at most {len(rows)}"
            )
        self.rows = rows
        self.seed = seed
        self.lanes = lanes
        self.window = window
        self.lane_samples = len(rows) // lanes
        self.lane_windows = -(-self.lane_samples // window)
        self._counts = np.bincount(index.shard[rows], minlength=len(index.shards))
        self._starts = np.concatenate([[0], np.cumsum(self._counts)])
        self._epochs: dict[int, _Epoch] = {}

    def places(self, numbers: NDArray[np.int64]) -> list[Place]:
        """Where these global sample numbers lie."""
        position, lane = np.divmod(numbers, self.lanes)
        epoch, within = np.divmod(position, self.lane_samples)
        window, inside = np.divmod(within, self.window)
        columns = (column.tolist() for column in (epoch, lane, window, inside))
        return [Place(WindowKey(*key), i) for *key, i in zip(*columns, strict=True)]

    def window_rows(self, key: WindowKey) -> NDArray[np.int64]:
        """The index rows of a window, in the order in which they are shown."""
        epoch, lane, window = key
        first = window * self.window
        size = self.window_size(key)
        shards, ends, rotation = self._epoch(epoch)
        start = lane * self.lane_samples + first + rotation
        sequence = (start + np.arange(size)) % len(self.rows)
        which = np.searchsorted(ends, sequence, side="right")
        inside = sequence - (ends[which] - self._counts[shards[which]])
        rows = self.rows[self._starts[shards[which]] + inside]
        shuffle = philox.key("window", self.seed, epoch, lane, window)
        return rows[philox.permutation(shuffle, size)]

    def window_size(self, key: WindowKey) -> int:
        """Samples in a window: the last one of a lane may be short."""
        return min(self.window, self.lane_samples - key.window * self.window)

    def following(self, key: WindowKey) -> WindowKey:
        """The next window of the lane."""
        if key.window + 1 < self.lane_windows:
            return WindowKey(key.epoch, key.lane, key.window + 1)
        return WindowKey(key.epoch + 1, key.lane, 0)

    def _epoch(self, epoch: int) -> "_Epoch":
        """The epoch's layout; the last few are cached, because lanes enter a new epoch one by one."""
        layout = self._epochs.get(epoch)
        if layout is None:
            shards = philox.permutation(philox.key("shards", self.seed, epoch), len(self._counts))
            word = philox.words(philox.key("rotation", self.seed), np.array([epoch]), 1)
            rotation = int(philox.integers(word, len(self.rows))[0, 0])
            layout = _Epoch(shards, np.cumsum(self._counts[shards]), rotation)
            recent = dict(list(self._epochs.items())[1 - _EPOCHS_KEPT :])
            self._epochs = recent | {epoch: layout}
        return layout


class _Epoch(NamedTuple):
    """An epoch's shards in order, where each ends in the sequence, and the rotation."""

    shards: NDArray[np.int64]
    ends: NDArray[np.int64]
    rotation: int
