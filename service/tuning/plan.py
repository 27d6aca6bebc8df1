"""What a sweep is: a configuration, the space around it, and how it is searched; kept in its folder."""

import json
import uuid
from dataclasses import asdict, dataclass
from typing import Any, Literal

from service.config import Config, differences
from service.engine.curriculum import Curriculum
from service.errors import DataError, UsageError
from service.storage import MissingError, Storage, open_storage
from service.training.run import RUN_KEY, SWEEP_KEY
from service.tuning.space import Space, apply

TRIALS = "trials"
RETRY_S = 10.0

Method = Literal["random", "grid", "optuna"]
Scheduler = Literal["asha", "none"]


@dataclass(frozen=True)
class Search:
    """How the space is searched.

    Every one of `trials` gets the same images to train on, but asynchronous successive halving (Li et
    al. 2020) stops those beyond the best 1 of `reduction` at `grace_images`, `reduction` times as many,
    and so on.
    """

    method: Method
    trials: int
    seed: int
    scheduler: Scheduler
    grace_images: int
    reduction: int


@dataclass(frozen=True)
class Plan:
    """A sweep. `config` is settled, its run.dir the sweep's folder or s3:// address."""

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
        """The images that a trial trains on, unless it is stopped."""
        return end_of(self.config)

    @property
    def tracking_uri(self) -> str:
        """MLflow's: one database for the sweep where no server is named."""
        return self.config.tracking.uri or f"sqlite:///{self.dir}/mlflow.db"

    def run_dir(self, trial: str) -> str:
        """The run.dir of a trial."""
        return f"{self.dir}/{TRIALS}/{trial}"

    def trial(self, trial: str, values: dict[str, Any]) -> Config:
        """The configuration of a trial; UsageError where its values do not go together.

        A range of workers gives its smallest count: rather more trials at a time than wider ones.
        """
        config = apply(self.config, values, f"trial {trial}")
        evaluation, checkpoint = config.evaluation, config.checkpoint
        sections: dict[str, dict[str, Any]] = {
            "run": {"dir": self.run_dir(trial), "images": self.end},
            "scale": {"workers": config.worker_counts[0]},
            "collapse": {"action": "stop"},
            "checkpoint": {"keep_best": max(1, checkpoint.keep_best)},
            # The sweep waits for scores, so they are no less urgent than the training.
            "evaluation": {
                "every_images": evaluation.every_images or checkpoint.every_images,
                "niceness": 0,
            },
            "tracking": {"uri": self.tracking_uri, "prometheus_port": 0},
        }
        changed = {
            name: getattr(config, name).model_copy(update=section) for name, section in sections.items()
        }
        return config.model_copy(update=changed)


def end_of(config: Config) -> int:
    """The clock at which a run of this configuration ends."""
    return config.run.images or Curriculum(config.phases, config.training.d_steps).end


def settle_plan(plan: Plan) -> str:
    """Write the plan into the sweep's folder, or see that it is the one there; returns its key.

    UsageError names what differs, DataError a damaged file.
    """
    storage = plan.storage
    search = asdict(plan.search) | {"images": plan.end}
    now = {"space": plan.space.to_plain(), "search": search}
    try:
        data = storage.get(SWEEP_KEY)
    except MissingError:
        if storage.sizes(RUN_KEY):
            raise UsageError(f"{storage.address} holds a run; choose another --dir") from None
        key = uuid.uuid4().hex
        content = {"key": key, "config": plan.config.model_dump(), **now}
        storage.put(SWEEP_KEY, json.dumps(content, indent=2).encode())
        return key
    try:
        before = json.loads(data)
        key = str(before["key"])
        changed = differences(before["config"], plan.config)
        changed += [
            f"{part} {name}: the sweep was started with {before[part].get(name)!r}, now it is"
            f" {now[part].get(name)!r}"
            for part in now
            for name in sorted({*before[part], *now[part]})
            if before[part].get(name) != now[part].get(name)
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{storage.url(SWEEP_KEY)}: damaged ({error}); restore it from a copy, or take another --dir"
        ) from error
    if changed:
        raise UsageError(
            f"{storage.address} holds another sweep; choose another --dir, or undo:\n  "
            + "\n  ".join(changed)
        )
    return key
