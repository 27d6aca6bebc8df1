"""From the driver: fit a group of workers, judge how it ended, fit again or stop."""

import functools
import logging
import os
import threading
import time
from dataclasses import dataclass, replace
from socket import gethostname
from typing import Any, Literal

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from service import environment, logs
from service.config import Config
from service.driver.group import Group, worker_resources
from service.driver.preflight import RunDir
from service.driver.process_group import ProcessGroup
from service.errors import ServiceError, TrainingError
from service.glibc import KEEP_FREED_MEMORY
from service.recording.record import Event, EventAction, Record
from service.recording.recorder import Leaving
from service.run import commits
from service.storage import Storage, is_s3
from service.storage.base import S3_SCHEME
from service.training.job import Job

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a group of workers ended: the clock of the newest checkpoint, and what went wrong.

    `cause` is an error that lasts, such as a missing bucket or a collapse;
    `waiting` says that the group never began, because its nodes were not there.
    """

    clock: int
    error: str | None = None
    cause: ServiceError | None = None
    waiting: bool = False


@dataclass(frozen=True)
class Action:
    """What comes next: `fit` again after `failures` in a row, be `done`, or `stop` for a reason."""

    kind: Literal["fit", "done", "stop"]
    failures: int = 0
    reason: str = ""


def decide(outcome: Outcome, end: int, clock_before: int, failures: int, max_failures: int) -> Action:
    """What to do after a group ended. Failures add up until a new checkpoint is committed."""
    if outcome.error is None and outcome.clock >= end:
        return Action("done")
    if outcome.error is None and outcome.clock > clock_before:
        return Action("fit", failures, f"the workers were asked to leave at {outcome.clock} images")
    reason = outcome.error or f"the workers stopped at {outcome.clock} of {end} images"
    if outcome.cause:
        return Action("stop", reason=reason)
    if outcome.waiting:
        return Action("fit", failures, reason)
    failures = 1 if outcome.clock > clock_before else failures + 1
    if failures > max_failures:
        return Action("stop", failures, f"failed {failures} times in a row: {reason}")
    return Action("fit", failures, reason)


def supervise(config: Config, run: RunDir, job: Job, leaving: threading.Event) -> None:
    """Train to the clock `job.end`, through deaths of workers; TrainingError if the run is given up.

    Each group of workers has a token of its own, so that an orphan of the one before commits nothing.
    KeyboardInterrupt once the driver is `leaving` and the workers have stopped.
    """
    storage = run.storage
    failures, group = 0, Group(config, job.recorder)
    while True:
        before = commits.newest_clock(storage)
        if before >= job.end:
            return
        workers = group.choose()
        log.info("event=fit workers=%d clock=%d failures=%d", workers, before, failures)
        with group.watched(job.token):
            outcome = _fit(config, job, workers, group.labels, storage)
        _free_reserved()
        group.ended(began=not outcome.waiting)
        if leaving.is_set() and outcome.clock < job.end:
            raise KeyboardInterrupt
        action = decide(outcome, job.end, before, failures, config.scale.max_failures)
        if action.kind == "stop":
            raise TrainingError(action.reason) from outcome.cause
        if action.kind == "done":
            return
        failures = action.failures
        job.recorder.leave(Leaving.NO)
        if leaving.is_set():
            raise KeyboardInterrupt
        rehearsed = job.rehearsed
        if outcome.clock > before:
            rehearsed = min(rehearsed or workers, workers)
        if outcome.error and not outcome.waiting:
            restart = Event(EventAction.RESTART, action.reason, {"failures": failures})
            job.recorder.write(Record(outcome.clock, time.time(), event=restart))
        job = replace(job, token=run.lock.advance(storage), rehearsed=rehearsed)
        log.warning("event=fit_again failures=%d reason=%s", failures, action.reason)


class _Trainer(DataParallelTrainer):
    """Ray Train's trainer without two processes for every group of workers.

    One is Ray Data's. The other frees what a dead controller had reserved: `_free_reserved` does, here
    in the driver, which outlives the controller.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        unneeded = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [each for each in callbacks if not isinstance(each, unneeded)]


def _free_reserved() -> None:
    """Free the resources that a group of this job still reserves after its end."""
    job = ray.get_runtime_context().get_job_id()
    for identity, group in placement_group_table().items():
        if identity.endswith(job) and group["state"] != "REMOVED":
            log.warning("event=freed placement_group=%s", identity)
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(identity))))


def _fit(
    config: Config, job: Job, workers: int, labels: dict[str, str] | None, storage: Storage
) -> Outcome:
    trainer = _Trainer(
        # a partial is opened by the workers alone; as a configuration it would be by the controller, too
        functools.partial(train, job),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=config.scale.gpu,
            resources_per_worker=worker_resources(config),
            label_selector=labels,
        ),
        backend_config=ProcessGroup(
            "nccl" if config.scale.gpu else "gloo", config.scale.group_timeout_s
        ),
        run_config=RunConfig(
            name=f"{job.token:06d}",
            # We decide which failure deserves another try, and with how many workers: Ray would
            # request the same number for ever.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            worker_runtime_env={} if config.scale.gpu else {"env_vars": KEEP_FREED_MEMORY},
            **ray_storage(config.run.dir),
        ),
    )
    try:
        trainer.fit()
        return Outcome(commits.newest_clock(storage))
    except SystemExit as error:  # Ray raises it on Ctrl-C while it fits
        raise KeyboardInterrupt from error
    except (TrainingFailedError, RayError) as error:  # the latter if Ray's controller itself died
        failure = error.controller_failure if isinstance(error, ControllerError) else None
        waiting = isinstance(failure, WorkerGroupStartupTimeoutError)
        return Outcome(commits.newest_clock(storage), *_explain(error), waiting)


def _explain(error: TrainingFailedError | RayError) -> tuple[str, ServiceError | None]:
    """The reason in words, and the workers' own error if it lasts."""
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    for index, failure in sorted(failures.items()):
        cause = getattr(failure, "_base_exc", failure)
        if isinstance(cause, ServiceError):
            return str(cause), cause if cause.lasts else None
        log.warning("event=worker_failed worker=%d error=%s", index, failure)
    causes = [getattr(f, "_base_exc", f) for f in failures.values()] or [error]
    first = causes[0]
    notes = " ".join(getattr(first, "__notes__", ()))
    return f"{type(first).__name__}: {first} {notes}".strip(), None


def train(job: Job) -> int:
    """Train to the clock `job.end`, and return it: each worker does so, and loads torch for it."""
    from service.training import worker

    rank = get_context().get_world_rank()
    send = functools.partial(job.recorder.log, f"worker-{rank}")
    logs.begin(send, run=Config(**job.config).run.name, role="worker", rank=rank, host=gethostname())
    try:
        return worker.train(job)
    except Exception:
        log.exception("event=worker_failed")
        job.recorder.settle()
        raise


def ray_storage(run_dir: str) -> dict[str, Any]:
    """Where Ray Train keeps its own small files of the run."""
    if not is_s3(run_dir):
        return {"storage_path": os.path.join(run_dir, "ray")}
    import pyarrow.fs

    # Each node has the keys in its environment; passed here, they would travel in clear text.
    endpoint = environment.s3_endpoint()
    options = {"endpoint_override": endpoint} if endpoint else {}
    path = run_dir.removeprefix(S3_SCHEME) + "/ray"
    return {"storage_filesystem": pyarrow.fs.S3FileSystem(**options), "storage_path": path}
