"""Keeps the scores of a run's checkpoints beside them, and ranks the checkpoints."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from service.documents import Clock, Count, Document
from service.errors import DataError, UsageError
from service.run.commits import Name
from service.storage import MissingError, Storage

log = logging.getLogger(__name__)

FOLDER = "scores"


@dataclass(frozen=True)
class Score:
    """The scores of one checkpoint: all `values` by name, and the one that decides.

    `rank` is `values[by]`, negated if higher is better. The lowest rank at a resolution is the best, and
    any score at a higher resolution beats those at lower ones. Only scores with the same `measure`
    are comparable: the same metric over the same number of `samples`.
    """

    clock: Clock
    resolution: Count
    by: str
    rank: float
    values: dict[str, float] = field(default_factory=dict)
    samples: Count = 0

    @property
    def measure(self) -> tuple[str, int]:
        """The metric, and the number of generated images."""
        return self.by, self.samples


class ScoreDocument(Document):
    """The score of one checkpoint."""

    version: Literal[2] = 2
    score: Score


def write(storage: Storage, name: Name, score: Score) -> None:
    """Store the score; it replaces an earlier one of the same checkpoint."""
    storage.put(_key(name), ScoreDocument(score=score).to_bytes())


def read(storage: Storage, names: Sequence[Name]) -> dict[Name, Score]:
    """The stored scores of these checkpoints; damaged ones are logged and skipped."""
    present = set(storage.sizes(f"{FOLDER}/"))
    scores = {}
    for name in names:
        key = _key(name)
        if key in present:
            try:
                scores[name] = ScoreDocument.from_bytes(storage.get(key), storage.url(key)).score
            except (MissingError, DataError) as error:
                log.warning("event=score_unreadable error=%s", error)
    return scores


def rank(storage: Storage, names: Sequence[Name]) -> list[Name]:
    """The scored checkpoints, best first; of equals, the later one first.

    Only scores by the newest metric and sample count are ranked.
    """
    return order(read(storage, names))


def order(scores: Mapping[Name, Score]) -> list[Name]:
    """The checkpoints with these scores as `rank` puts them."""
    scores = {name: score for name, score in scores.items() if math.isfinite(score.rank)}
    if not scores:
        return []
    measure = scores[max(scores)].measure

    def place(name: Name) -> tuple[float, ...]:
        return -scores[name].resolution, scores[name].rank, -name.token, -name.sequence

    return sorted((name for name in scores if scores[name].measure == measure), key=place)


def check_comparable(storage: Storage, names: Sequence[Name], measure: tuple[str, int]) -> None:
    """UsageError if these checkpoints have scores but none by this `measure`."""
    kept = {score.measure for score in read(storage, names).values() if math.isfinite(score.rank)}
    if kept and measure not in kept:
        measures = ", ".join(f"{by} of {samples} images" for by, samples in sorted(kept))
        raise UsageError(
            f"{storage.address}: its checkpoints are ranked by {measures}, which does not compare"
            f" with {measure[0]} of {measure[1]} images; score by the same, or leave --keep out"
        )


def _key(name: Name) -> str:
    return f"{FOLDER}/{name.folder.rpartition('/')[2]}.json"
