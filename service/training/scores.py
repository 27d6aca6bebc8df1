"""What evaluations found of a run's checkpoints, kept beside them: which of them is the best."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from service.storage import MissingError, Storage
from service.training.checkpoint import Name

log = logging.getLogger(__name__)

FOLDER = "scores"


@dataclass(frozen=True)
class Score:
    """An evaluation of one checkpoint: all `values` by name, and the one that decides.

    `rank` is `values[by]`, turned round where more is better: the lowest of a resolution is the best,
    and any of a higher resolution is better than those of a lower one.
    """

    images: int
    resolution: int
    by: str
    rank: float
    values: dict[str, float] = field(default_factory=dict)


def write(storage: Storage, name: Name, score: Score) -> None:
    """Keep it, in the place of an earlier one of the same checkpoint."""
    storage.put(_key(name), json.dumps(asdict(score), indent=2).encode())


def read(storage: Storage, names: Sequence[Name]) -> dict[Name, Score]:
    """The scores that there are of these checkpoints; damaged ones are logged and passed over."""
    present = set(storage.sizes(f"{FOLDER}/"))
    found = {}
    for name in names:
        if _key(name) in present:
            try:
                found[name] = Score(**json.loads(storage.get(_key(name))))
            except (MissingError, ValueError, TypeError) as error:
                log.warning("event=score_unreadable file=%s error=%s", storage.url(_key(name)), error)
    return found


def rank(storage: Storage, names: Sequence[Name]) -> list[Name]:
    """The checkpoints that have a score, the best first, the later one of equals."""
    scores = read(storage, names)

    def place(name: Name) -> tuple[float, ...]:
        return -scores[name].resolution, scores[name].rank, -name.token, -name.sequence

    return sorted((name for name in scores if math.isfinite(scores[name].rank)), key=place)


def _key(name: Name) -> str:
    return f"{FOLDER}/{name.folder.rpartition('/')[2]}.json"
