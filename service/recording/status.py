"""Where a run stands, for whoever looks from outside: `status.json` in its directory."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from service.collapse.state import Verdict
from service.documents import Clock, Count, Document, Seconds
from service.recording.record import Text

STATUS_KEY = "status.json"
STATUS_S = 15.0
"""A run that trains writes it anew this often."""

Status = Literal["FINISHED", "FAILED", "KILLED"]
"""How a run ended, in MLflow's words."""
RunStatus = Literal["RUNNING"] | Status
Value = Annotated[float, Field(allow_inf_nan=False)]


class StatusDocument(Document):
    """What the recorder last knew of a run, at `time` (seconds since the epoch).

    `end` is the clock at which it ends; `left_s` are the seconds until then, if that is known.
    `trouble` says why MLflow lacks records, `still` whom the workers wait for, and `error` what last
    went wrong; they are empty if there is nothing to say.
    """

    remedy: ClassVar[str] = "delete it: the run writes it anew"

    version: Literal[1] = 1
    time: Seconds
    started: Seconds
    status: RunStatus
    clock: Clock
    end: Clock
    attempt: Count
    stage: Text
    verdict: Verdict | None
    values: dict[str, Value]
    left_s: Value | None
    checkpoint_time: Seconds | None
    trouble: Text
    still: Text
    error: Text


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among the values that are finite, but for those of single weights."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value) and "." not in name
    }
