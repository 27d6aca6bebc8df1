"""Judges a training by its signals over time: healthy, warning or collapsed, of which kind, and why.

A pure function of the measurements, so that all workers and all restarts judge alike. Its thresholds
are ratios to the real images or to the run's own past, and the same for every data set.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

LEVELS = ("healthy", "warning", "collapsed")
KINDS = ("numeric", "mode_collapse", "divergence", "d_overfit", "d_too_strong", "g_too_strong")

HISTORY = 64
"""Measurements that a verdict may look back on."""


@dataclass(frozen=True)
class Measurement:
    """The signals at a clock of `images`, within a span of the curriculum."""

    images: int
    span: str
    values: dict[str, float]

    def to_plain(self) -> dict[str, Any]:
        """Fit for JSON."""
        return asdict(self)

    @staticmethod
    def from_plain(content: dict[str, Any]) -> "Measurement":
        """The measurement that `to_plain` gave."""
        return Measurement(**content)


@dataclass(frozen=True)
class Verdict:
    """One of LEVELS; unless healthy one of KINDS, and a sentence to act on.

    `onset` is the clock of the last measurement before the trouble began.
    """

    level: str = "healthy"
    kind: str = ""
    reason: str = ""
    onset: int = 0

    def to_plain(self) -> dict[str, Any]:
        """Fit for JSON."""
        return asdict(self)


def judge(history: Sequence[Measurement]) -> Verdict:
    return Verdict(onset=history[-1].images)
