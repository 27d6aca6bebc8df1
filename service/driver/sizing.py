"""How many workers train: a judgement without side effects, over what is free and what is allowed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

Resources = Mapping[str, float]


def room(nodes: Sequence[Resources], need: Resources) -> int:
    """How many workers fit into these resources, node by node: a worker lies on one node."""
    return sum(min(int(node.get(kind, 0) // amount) for kind, amount in need.items()) for node in nodes)


def choose(counts: Sequence[int], fitting: int, below: int | None = None) -> int:
    """The largest allowed count that fits, or else the smallest: an autoscaler may bring its nodes.

    `below` is a count that did not start although it seemed to fit; a smaller one is taken, if any.
    """
    smaller = [count for count in counts if below is None or count < below]
    return max((count for count in smaller if count <= fitting), default=counts[0])


@dataclass(frozen=True)
class Limits:
    """The allowed `counts`, rising, and times in seconds.

    The first group waits `patience_s` for the largest count; room for a larger group must last
    `grow_after_s` before it is used.
    """

    counts: tuple[int, ...]
    patience_s: float
    grow_after_s: float


@dataclass(frozen=True)
class Size:
    """What the driver knows of its group. Times are seconds of one monotonic clock.

    `workers` is 0 while there is no group, and `started` once there was one. `since` is when the driver
    began to wait for the first, or when room for a larger one was first seen. A group of `failed` did
    not begin although it seemed to fit: fewer than `below` are tried next, and so many from `until` on;
    each failure doubles that pause.
    """

    workers: int = 0
    started: bool = False
    since: float | None = None
    below: int | None = None
    failed: int | None = None
    until: float = 0.0
    pause_s: float = 0.0


@dataclass(frozen=True)
class Action:
    """What to do: nothing, if `workers` is None; `fit` so many; or let the group `grow` to so many."""

    workers: int | None = None
    grow: bool = False


WAIT = Action()


def decide(limits: Limits, size: Size, fitting: int, now: float) -> tuple[Size, Action]:
    """What to do when so many workers fit, those of the group included, and what to remember.

    A group counts once all its workers have begun: until then they may be about to take what is free.
    """
    if size.workers:
        return _decide_growth(limits, size, fitting, now)
    tried = size.failed if size.failed and now < size.until else None
    workers = choose(limits.counts, fitting, size.below or tried)
    since = now if size.since is None else size.since
    if not size.started and workers < limits.counts[-1] and now < since + limits.patience_s:
        return replace(size, since=since), WAIT
    return replace(size, workers=workers, started=True, since=None), Action(workers)


def _decide_growth(limits: Limits, size: Size, fitting: int, now: float) -> tuple[Size, Action]:
    tried = size.failed if size.failed and now < size.until else None
    larger = choose(limits.counts, fitting, tried)
    if not size.workers < larger <= fitting:
        return replace(size, since=None), WAIT
    since = now if size.since is None else size.since
    if now < since + limits.grow_after_s:
        return replace(size, since=since), WAIT
    return replace(size, since=since), Action(larger, grow=True)


def ended(limits: Limits, size: Size, began: bool, now: float) -> Size:
    """What to remember after the group's end; `began` is False if its nodes were not there in time."""
    if began:
        failed = size.failed if size.failed and size.workers < size.failed else None
        pause_s = size.pause_s if failed else 0.0
        return replace(size, workers=0, since=None, below=None, failed=failed, pause_s=pause_s)
    pause_s = max(2 * size.pause_s, limits.grow_after_s)
    return replace(
        size,
        workers=0,
        since=None,
        below=size.workers,
        failed=size.workers,
        until=now + pause_s,
        pause_s=pause_s,
    )
