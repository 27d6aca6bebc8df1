"""What a sweep is: a configuration, a space of settings, and how it is searched. Kept in its folder."""

import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from service.config import Config
from service.config.identity import differences
from service.documents import Clock, Count, Document, Plain
from service.engine.curriculum import curriculum_of
from service.errors import UsageError
from service.run.directory import RUN_KEY, SWEEP_KEY
from service.storage import MissingError, Storage, open_storage
from service.tuning.space import Space, apply

TRIALS = "trials"
RETRY_S = 10.0

Method = Literal["random", "grid", "optuna"]
Scheduler = Literal["asha", "none"]


class TrialState(StrEnum):
    """A trial's state: `stopped` by the scheduler, `refused` if its settings do not fit together."""

    TRAINING = "training"
    FINISHED = "finished"
    STOPPED = "stopped"
    COLLAPSED = "collapsed"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True)
class Search:
    """How the space is searched.

    Each of the `trials` may train to the same clock. Asynchronous successive halving (Li et al. 2020)
    lets only the best 1 in `reduction` go on at `grace_images`, at `reduction` times as many, and so on.
    """

    method: Method
    trials: Count
    seed: Count
    scheduler: Scheduler
    grace_images: Count
    reduction: Count


class SweepDocument(Document):
    """What a sweep was started with. `end` is the clock at which trials end."""

    remedy: ClassVar[str] = "restore it from a copy, or choose another --dir"

    version: Literal[2] = 2
    key: Annotated[str, Field(min_length=1, max_length=64)]
    config: Plain
    space: Plain
    search: Search
    end: Clock


@dataclass(frozen=True)
class Plan:
    """A sweep. `config` is settled; its run.dir is the sweep's folder or s3:// address."""

    config: Config
    space: Space
    search: Search

    @property
    def dir(self) -> str:
        """Where the sweep is kept."""
        return self.config.run.dir

    @property
    def storage(self) -> Storage:
        """The sweep's folder."""
        return open_storage(self.dir, RETRY_S)

    @property
    def end(self) -> int:
        """The clock at which a trial ends, unless it is stopped."""
        return end_of(self.config)

    def run_dir(self, trial: str) -> str:
        """The run.dir of a trial."""
        return f"{self.dir}/{TRIALS}/{trial}"

    def trial(self, trial: str, values: dict[str, Any]) -> Config:
        """The configuration of a trial; UsageError if its values do not fit together.

        It takes the smallest of a range of worker counts: more trials at a time, not wider ones.
        """
        config = apply(self.config, values, f"trial {trial}")
        evaluation, checkpoint = config.evaluation, config.checkpoint
        sections: dict[str, dict[str, Any]] = {
            "run": {"dir": self.run_dir(trial), "images": self.end},
            "scale": {"workers": config.worker_counts[0]},
            "collapse": {"action": "stop"},
            "checkpoint": {"keep_best": max(1, checkpoint.keep_best)},
            # The sweep waits for scores, so they are as urgent as the training.
            "evaluation": {
                "every_images": evaluation.every_images or checkpoint.every_images,
                "niceness": 0,
            },
            "tracking": {"uri": self.config.tracking_uri, "prometheus_port": 0},
        }
        changed = {
            name: getattr(config, name).model_copy(update=section) for name, section in sections.items()
        }
        return config.model_copy(update=changed)


def end_of(config: Config) -> int:
    """The clock at which a run of this configuration ends."""
    return config.run.images or curriculum_of(config).end


def settle_plan(plan: Plan) -> str:
    """Write the plan into the sweep's folder, or check that it is the one there; returns its key.

    UsageError names what differs, DataError a damaged file.
    """
    storage = plan.storage
    now = SweepDocument(
        key=uuid.uuid4().hex,
        config=plan.config.model_dump(),
        space=plan.space.to_plain(),
        search=plan.search,
        end=plan.end,
    )
    try:
        before = SweepDocument.from_bytes(storage.get(SWEEP_KEY), storage.url(SWEEP_KEY))
    except MissingError:
        if storage.sizes(RUN_KEY):
            raise UsageError(f"{storage.address} holds a run; choose another --dir") from None
        storage.put(SWEEP_KEY, now.to_bytes())
        return now.key
    changed = [*differences(before.config, plan.config), *_other_search(before, now)]
    if changed:
        raise UsageError(
            f"{storage.address} holds another sweep; choose another --dir, or undo:\n  "
            + "\n  ".join(changed)
        )
    return before.key


def _other_search(before: SweepDocument, now: SweepDocument) -> Iterator[str]:
    """Lines that name each difference in the space and the search, with both values."""
    for part, old, new in (
        ("space", before.space, now.space),
        ("search", asdict(before.search) | {"end": before.end}, asdict(now.search) | {"end": now.end}),
    ):
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                yield (
                    f"{part} {name}: the sweep was started with {old.get(name)!r}, now it is"
                    f" {new.get(name)!r}"
                )
