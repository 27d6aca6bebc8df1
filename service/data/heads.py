"""What the headers of some images, drawn by the seed, say of all before a run: sizes and modes."""

import io
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from service.data.image import header
from service.data.index import Index
from service.errors import DataError
from service.random import philox
from service.storage import Storage

MOST_LOOKED_AT = 2_000
READERS = 16
HEAD_BYTES = 1 << 15
CERTAIN_SIGMAS = 4.0


@dataclass
class Heads:
    """What was seen of `rows`: modes, and the images that are too small or cannot be opened."""

    rows: NDArray[np.int64]
    population: int
    modes: Counter[str] = field(default_factory=Counter)
    small: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def bad(self) -> int:
        """How many of them cannot be shown at the last rung."""
        return len(self.small) + len(self.unreadable)

    @property
    def at_least_bad(self) -> int:
        """How many of the population are bad, almost certainly: no fewer than were seen."""
        seen = len(self.rows)
        if seen == self.population:
            return self.bad
        share = self.bad / seen
        margin = CERTAIN_SIGMAS * np.sqrt(share * (1 - share) / seen)
        return max(self.bad, int((share - margin) * self.population))

    def in_words(self, resolution: int) -> Iterator[str]:
        """What a user should know, line by line; nothing if all images are alike and large enough."""
        seen = len(self.rows)
        drawn = "all" if seen == self.population else f"{seen:,} drawn by the seed"
        if self.small:
            yield (
                f"{_share(len(self.small), seen)} of the images ({drawn}) are smaller than the last"
                f" rung's {resolution} px, such as {self.small[0]}"
            )
        if self.unreadable:
            yield (
                f"{_share(len(self.unreadable), seen)} of the images ({drawn}) cannot be opened, such as"
                f" {self.unreadable[0]}"
            )
        if len(self.modes) > 1:
            counts = self.modes.most_common()
            modes = ", ".join(f"{_share(count, seen)} {mode}" for mode, count in counts)
            yield f"the images ({drawn}) are of several modes: {modes}; all are brought to the model's"


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.3g} %"


def look_at_heads(
    storage: Storage, index: Index, rows: NDArray[np.int64], resolution: int, seed: int
) -> Heads:
    """Open up to MOST_LOOKED_AT of these rows' images, without decoding them.

    They are drawn by the seed; those with a side below `resolution` are small.
    """
    drawn = rows[philox.permutation(philox.key("heads", seed), len(rows))[:MOST_LOOKED_AT]]
    heads = Heads(np.sort(drawn), len(rows))
    with ThreadPoolExecutor(READERS, thread_name_prefix="heads") as threads:
        looks = threads.map(lambda row: _look(storage, index, row), heads.rows.tolist())
        shown = tqdm(looks, "looking at images", len(heads.rows), unit=" images", disable=None)
        for row, look in zip(heads.rows.tolist(), shown, strict=True):
            if isinstance(look, DataError):
                heads.unreadable.append(f"{index.describe(row)}: {look}")
                continue
            mode, width, height = look
            heads.modes[mode] += 1
            if min(width, height) < resolution:
                heads.small.append(f"{index.describe(row)}, {width}×{height}")
    return heads


def _look(storage: Storage, index: Index, row: int) -> tuple[str, int, int] | DataError:
    """Mode, width and height of an image; most formats say them at their beginning."""
    name, size, offset = index.names[index.shard[row]], int(index.size[row]), int(index.offset[row])
    try:
        return header(io.BytesIO(storage.get(name, offset, min(size, HEAD_BYTES))))
    except DataError as error:
        if size <= HEAD_BYTES:
            return error
    try:
        return header(io.BytesIO(storage.get(name, offset, size)))
    except DataError as error:
        return error
