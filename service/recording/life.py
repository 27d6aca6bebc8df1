"""Signs of life: what each worker of a group is doing, and since when."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

STILL_LEAST_S = 20.0
"""Shorter waits are not reported."""
SILENT_S = 8.0
"""A worker is silent once its last beat is so much older than the newest one; they come every 2 s."""


@dataclass(frozen=True)
class Beat:
    """One sign of life, from worker `rank` of the group with this token.

    `place` is its host and process. It has been `doing` the same thing for `for_s` seconds, of which
    `limit_s` are allowed; more while it is `patient`, for a storage may still answer in time. One that
    `stands_still` gives its last sign: it ends itself.
    """

    token: int
    rank: int
    place: str
    doing: str
    for_s: float
    limit_s: float
    patient: bool = False
    stands_still: bool = False


@dataclass(frozen=True)
class Sign:
    """A beat, the seconds since it came, the worker's handle, and the identifier of its node."""

    beat: Beat
    age_s: float
    worker: Any
    node: str = ""

    @property
    def still_s(self) -> float:
        """How long the worker has been doing the same thing, as far as anybody knows."""
        return self.beat.for_s + self.age_s

    @property
    def is_in_time(self) -> bool:
        """Whether what it does may still take longer."""
        return self.still_s <= self.beat.limit_s or (self.beat.patient and self.age_s < STILL_LEAST_S)

    def in_words(self) -> str:
        """Who has been doing what, and how long."""
        silent = f", silent for {self.age_s:.0f} s" if self.age_s > STILL_LEAST_S else ""
        beat = self.beat
        return f"worker {beat.rank} ({beat.place}): {beat.doing} for {self.still_s:.0f} s{silent}"


class Life:
    """The newest beat of each worker of the newest group."""

    def __init__(self) -> None:
        self._token = 0
        self._beats: dict[int, tuple[Beat, float, Any, str]] = {}

    def take(self, beat: Beat, worker: Any, node: str, now: float) -> bool:
        """Take a beat at the time `now`; returns whether its worker may be waiting for another one.

        That one is doing something else, and in time.
        """
        if beat.token > self._token:
            self._token = beat.token
            self._beats.clear()
        if beat.token == self._token:
            self._beats[beat.rank] = beat, now, worker, node
        others = [s for s in self.signs(now) if s.beat.rank != beat.rank and s.beat.doing != beat.doing]
        return any(sign.is_in_time for sign in others)

    def forget(self, token: int, rank: int) -> None:
        """A worker has ended in order."""
        if token == self._token:
            self._beats.pop(rank, None)

    def signs(self, now: float) -> list[Sign]:
        """The newest sign of each worker, by rank."""
        newest = (self._beats[rank] for rank in sorted(self._beats))
        return [Sign(beat, now - at, worker, node) for beat, at, worker, node in newest]


def longest_still(signs: Iterable[Sign]) -> Sign | None:
    """The worker that the others wait for, if they wait longer than is usual."""
    still = [s for s in signs if s.still_s > max(STILL_LEAST_S, s.beat.limit_s / 3)]
    # one that is silent, or that waits for storage, is what the others wait for
    return max(
        still,
        key=lambda sign: (sign.age_s > STILL_LEAST_S, sign.beat.patient, sign.still_s),
        default=None,
    )


def to_blame(signs: Sequence[Sign]) -> list[Sign]:
    """The workers to blame for a group's hang: those that fell silent, or else who stood still longest.

    Nobody, if no worker stood still.
    """
    still = [sign for sign in signs if sign.beat.stands_still]
    if not still:
        return []
    newest_s = min(sign.age_s for sign in signs)
    silent = [sign for sign in signs if sign.age_s > newest_s + SILENT_S]
    return silent or [max(still, key=lambda sign: sign.beat.for_s)]
