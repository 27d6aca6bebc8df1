"""What evaluations found of a run's checkpoints, kept beside them: which of them is the best."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from service.errors import UsageError
from service.storage import MissingError, Storage
from service.training.checkpoint import Name

log = logging.getLogger(__name__)

FOLDER = "scores"


@dataclass(frozen=True)
class Score:
    """An evaluation of one checkpoint: all `values` by name, and the one that decides.

    `rank` is `values[by]`, turned round where more is better: the lowest of a resolution is the best,
    and any of a higher resolution is better than those of a lower one. Only scores of one `measure`
    compare: by the same of them, over as many `samples`.
    """

    images: int
    resolution: int
    by: str
    rank: float
    values: dict[str, float] = field(default_factory=dict)
    samples: int = 0

    @property
    def measure(self) -> tuple[str, int]:
        """What was measured, over how many generated images."""
        return self.by, self.samples


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
    """The checkpoints with a score that compares with the newest one's, the best first.

    Of equals the later one.
    """
    found = read(storage, names)
    scores = {name: score for name, score in found.items() if math.isfinite(score.rank)}
    if not scores:
        return []
    measure = scores[max(scores)].measure

    def place(name: Name) -> tuple[float, ...]:
        return -scores[name].resolution, scores[name].rank, -name.token, -name.sequence

    return sorted((name for name in scores if scores[name].measure == measure), key=place)


def check_comparable(storage: Storage, names: Sequence[Name], measure: tuple[str, int]) -> None:
    """UsageError where these checkpoints have scores, and none that `measure` compares with."""
    kept = {score.measure for score in read(storage, names).values() if math.isfinite(score.rank)}
    if kept and measure not in kept:
        told = ", ".join(f"{by} of {samples} images" for by, samples in sorted(kept))
        raise UsageError(
            f"{storage.address}: its checkpoints are ranked by {told}, with which {measure[0]} of"
            f" {measure[1]} images does not compare; score by the same, or leave --keep out"
        )


def _key(name: Name) -> str:
    return f"{FOLDER}/{name.folder.rpartition('/')[2]}.json"
