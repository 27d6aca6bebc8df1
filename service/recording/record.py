"""What workers send the recorder: small, plain, and complete in itself."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from service.collapse.state import Verdict
from service.documents import Clock, Count, Document, Plain, Seconds

Text = Annotated[str, Field(max_length=100_000)]


class EventAction(StrEnum):
    """What happened to a run."""

    ALERT = "alert"
    PROTECT = "protect"
    REWIND = "rewind"
    STOP = "stop"
    BEST = "best"
    UNSCORED = "unscored"
    RESIZE = "resize"
    HANG = "hang"
    RESTART = "restart"


_OF_GROUPS = (EventAction.RESIZE, EventAction.HANG, EventAction.RESTART)


@dataclass(frozen=True)
class Event:
    """What happened to a run, the reason in words, and details by name."""

    action: EventAction
    reason: Text
    details: Plain = field(default_factory=dict)


@dataclass(frozen=True)
class SpanTime:
    """How long a cycle of a span takes: the span's clocks [start, end), a cycle's images and seconds."""

    start: Clock
    end: Clock
    cycle_images: Annotated[int, Field(ge=1)]
    seconds: Seconds


@dataclass(frozen=True)
class Note:
    """What live displays show: the span by name, the verdict, how long the spans' cycles take."""

    stage: Text | None = None
    verdict: Verdict | None = None
    forecast: tuple[SpanTime, ...] | None = None


@dataclass(frozen=True)
class Record:
    """One message at a `clock`, made at `time` (seconds since the epoch).

    `values` are numbers for the curves; `picture` is the key of a PNG in the run directory;
    `checkpoint` describes one that was committed; `scores` are an evaluation's.
    """

    clock: Clock
    time: Seconds
    attempt: Count = 0
    values: dict[str, float] = field(default_factory=dict)
    picture: Text | None = None
    checkpoint: Plain | None = None
    scores: dict[str, float] = field(default_factory=dict)
    event: Event | None = None
    note: Note | None = None

    @property
    def kind(self) -> str:
        """Records of one kind come in the order of the clock.

        What befalls a group has an order of its own: it goes on from a checkpoint before other events.
        """
        if self.event and self.event.action in _OF_GROUPS:
            return self.event.action
        for kind in ("picture", "checkpoint", "scores", "event"):
            if getattr(self, kind):
                return kind
        return "values"


class Refusal(Document):
    """A part of a record, by its name, that MLflow does not take, and the reason."""

    version: Literal[1] = 1
    record: Record
    what: Text
    reason: Text
