"""What the driver asks of a group of workers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from service.recording.recorder import RecorderClient
from service.scoring.actor import ScorerClient


@dataclass(frozen=True)
class Job:
    """What the supervisor hands to every worker; the configuration travels as plain data.

    `node_is_leaving` says whether a node of the group is about to go; all workers call it together.
    `rehearsed` is the smallest number of workers that this driver has seen training, 0 for none.
    """

    config: dict[str, Any]
    token: int
    end: int
    recorder: RecorderClient
    scorer: ScorerClient | None = None
    node_is_leaving: Callable[[], bool] | None = None
    rehearsed: int = 0
