"""A training's health so far: measurements, the last verdict, and what was done about it.

All of it resumes with the training. It is plain values, fit for JSON.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from service.documents import Clock, Count

HISTORY = 64
"""Measurements that a verdict may look back on."""

Word = Annotated[str, Field(max_length=4096)]


class Level(StrEnum):
    """How bad the trouble is."""

    HEALTHY = "healthy"
    WARNING = "warning"
    COLLAPSED = "collapsed"

    @property
    def severity(self) -> int:
        """0 for healthy, 1 for a warning, 2 for a collapse."""
        return list(Level).index(self)


class Kind(StrEnum):
    """What kind of trouble it is."""

    NUMERIC = "numeric"
    MODE_COLLAPSE = "mode_collapse"
    DIVERGENCE = "divergence"
    D_OVERFIT = "d_overfit"
    D_TOO_STRONG = "d_too_strong"
    G_TOO_STRONG = "g_too_strong"


@dataclass(frozen=True)
class Measurement:
    """The signals by name at a `clock`, after `cycles` cycles of a span of the curriculum."""

    clock: Clock
    span: Word
    cycles: Count
    values: dict[str, float]


@dataclass(frozen=True)
class Verdict:
    """How healthy a training is; if it is not, the kind of trouble and a reason to act on.

    `onset` is the clock of the last measurement before the trouble began.
    """

    level: Level = Level.HEALTHY
    kind: Kind | None = None
    reason: Word = ""
    onset: Clock = 0

    def __post_init__(self) -> None:
        if (self.kind is None) != (self.level == Level.HEALTHY):
            raise ValueError(f"a verdict of level {self.level!s} cannot have kind {self.kind}")


@dataclass(frozen=True)
class CollapseState:
    """What the monitor keeps: the latest measurements, oldest first, and the verdict on the last.

    `protected` are the folders of checkpoints that stay for good; `rewound_to` is the clock that the
    last rewind went back to.
    """

    history: Annotated[tuple[Measurement, ...], Field(max_length=HISTORY)] = ()
    verdict: Verdict = Verdict()
    protected: tuple[Word, ...] = ()
    rewound_to: Clock | None = None
