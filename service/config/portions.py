"""How a batch is dealt: in groups that are measured together, to workers, and in portions of a share.

Sample number n of a batch of b images is in group n mod (b / group), whoever holds it. Worker w of W
takes the numbers ≡ w mod W. So where W divides the number of groups, each worker holds whole groups,
and where that number divides W, each group lies in equal parts with some workers; nothing else is
allowed.
"""

import math
from dataclasses import dataclass
from typing import Any, TypeVar

Sliced = TypeVar("Sliced", bound=Any)

PANEL_IMAGES = 64
"""At least so many images show the signals: a class needs a few to show variety."""


@dataclass(frozen=True)
class Portions:
    """How one worker's share of a batch goes through the networks: in `count` portions of `size` images.

    A portion holds the share's images of `groups` groups, image i of it one of group i mod `groups`. As
    many images of each group are with each of `peers` workers.
    """

    count: int
    size: int
    groups: int
    peers: int

    def part(self, share: Sliced, portion: int) -> Sliced:
        """A portion of an array or tensor of the share [n, …], which is in the order of the numbers."""
        if self.count == 1:
            return share
        first, rest = portion * self.groups, share.shape[1:]
        rows = share.reshape(-1, self.count * self.groups, *rest)[:, first : first + self.groups]
        return rows.reshape(self.size, *rest)


def is_dealt(batch: int, group: int, workers: int) -> bool:
    """Whether a batch in groups of so many images can be dealt to so many workers."""
    groups = batch // group
    return batch % workers == 0 and (groups % workers == 0 or workers % groups == 0)


def panel_batch(batch: int, group: int) -> int:
    """Images that the signals measure at a time: as few whole groups as hold a panel.

    They are at least 64, and an eighth of the batch, so that many workers can share them; if the batch
    has fewer, all of it.
    """
    groups, least = batch // group, max(PANEL_IMAGES, batch // 8)
    return group * next((n for n in _divisors(groups) if n * group >= least), groups)


def portions(batch: int, group: int, workers: int, most: int | None = None) -> Portions:
    """How each of `workers` takes its share of a batch in groups of `group` images.

    At most `most` images go through at a time (None: the whole share), but no fewer than the share's
    part of one group. ValueError if the batch cannot be dealt to so many.
    """
    if batch % group or not is_dealt(batch, group, workers):
        raise ValueError(f"a batch of {batch} in groups of {group} cannot be dealt to {workers} workers")
    share, peers = batch // workers, max(1, workers // (batch // group))
    here = share // (group // peers)
    limit = share if most is None else most
    together = max(n for n in _divisors(here) if n == 1 or n * share <= limit * here)
    return Portions(here // together, share * together // here, together, peers)


def _divisors(number: int) -> list[int]:
    """All that divide a number, rising."""
    low = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*low, *(number // n for n in low)})
