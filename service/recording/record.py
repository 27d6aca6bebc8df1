"""What workers tell the recorder: small, plain, and complete in itself."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    """One message at the clock `images`, made at `time` (seconds since the epoch).

    `values` are numbers for the curves; `picture` is the key of a PNG in the run directory;
    `checkpoint` describes one that was committed; `scores` are an evaluation's; `event` is what befell
    the run: an `action` (alert, protect, rewind, best, unscored), a `reason` in words and what belongs
    to it; `note` is for live displays.
    """

    images: int
    time: float
    attempt: int = 0
    values: dict[str, float] = field(default_factory=dict)
    picture: str | None = None
    checkpoint: dict[str, Any] | None = None
    scores: dict[str, float] = field(default_factory=dict)
    event: dict[str, Any] | None = None
    note: dict[str, Any] | None = None

    @property
    def kind(self) -> str:
        """Records of one kind come in the order of the clock."""
        for kind in ("picture", "checkpoint", "scores", "event"):
            if getattr(self, kind):
                return kind
        return "values"

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(line: str) -> "Record":
        """The record of such a line."""
        return Record(**json.loads(line))
