"""Takes one run to its end: joins Ray, starts the recorder, supervises the training.

`service.train` and every trial of a sweep go through here.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from functools import partial

from service import environment, logs
from service.config import Config
from service.driver.description import check_tracking, describe_run
from service.driver.group import asking_the_autoscaler
from service.driver.join import join_ray
from service.driver.leaving import leaving_on_sigterm, node_is_leaving
from service.driver.preflight import RunDir, open_run
from service.driver.progress import Progress
from service.driver.supervisor import supervise
from service.errors import ServiceError, TrainingError
from service.recording.prometheus import free_port
from service.recording.recorder import RecorderClient, start_recorder
from service.recording.status import Status
from service.run.failure import write_failure
from service.scoring.actor import ScorerClient, start_scorer
from service.training.job import Job

CLOSE_LIMIT_S = 60.0


def launch(
    config: Config, parent: str | None = None, again: bool = False, patience_s: float = 0
) -> None:
    """Train a settled configuration to its end, or resume the run in its run.dir.

    `parent` is the key of the MLflow run that this one is nested in; `again` tries anew what failed
    for a reason that lasts; for `patience_s` it waits until another process is done with the run.
    Raises a ServiceError if the run fails, and KeyboardInterrupt if it is interrupted; the recorder
    closes with a matching status.
    """
    if parent is None:  # a sweep has checked it for its trials
        check_tracking(config)
    with (
        open_run(config, again, patience_s) as run,
        join_ray(config),
        asking_the_autoscaler(config),
        _recorder(config, run, parent) as recorder,
        _logged(recorder),
        _scorer(config, run) as scorer,
        Progress(recorder.latest, run.end),
    ):
        asked = None if environment.ray_address() == "local" else node_is_leaving
        job = Job(config.model_dump(), run.token, run.end, recorder, scorer, asked)
        try:
            with leaving_on_sigterm(recorder) as leaving:
                supervise(config, run, job, leaving)
        except TrainingError as error:
            if isinstance(error.__cause__, ServiceError) and error.__cause__.lasts:
                write_failure(run.storage, config, error)
            raise


@contextlib.contextmanager
def _logged(recorder: RecorderClient) -> Iterator[None]:
    """Keep the driver's log in the run's directory, beside the terminal's."""
    logger, handler = logging.getLogger(logs.ROOT), logs.Forward(partial(recorder.log, "driver"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def _recorder(config: Config, run: RunDir, parent: str | None) -> Iterator[RecorderClient]:
    """The run's recorder, closed with the final status of the run."""
    host = config.tracking.prometheus_host
    port = config.tracking.prometheus_port or free_port(host)  # kept if the actor restarts
    recorder = start_recorder(
        _recorder_name(run),
        run_dir=config.run.dir,
        description=describe_run(config, run, parent),
        prometheus_host=host,
        prometheus_port=port,
        retry_s=config.storage.retry_s,
        end=run.end,
        intervals={
            "tracking_every_images": config.tracking.every_images,
            "checkpoint_every_images": config.checkpoint.every_images,
            "evaluation_every_images": config.evaluation.every_images or 0,
            "workers_wanted": max(config.worker_counts),
        },
        targets=environment.prometheus_targets(),
    )
    print(
        f"run {config.run.dir}, {run.end} images; live values at http://{host}:{recorder.port()}/metrics",
        flush=True,
    )
    status: Status = "FAILED"
    error = ""
    try:
        yield recorder
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except Exception as failure:
        error = str(failure) or type(failure).__name__
        raise
    finally:
        trouble = recorder.close(status, {}, CLOSE_LIMIT_S, error)
        if trouble:
            print(f"MLflow is missing records ({trouble}); the same command sends them",
                  file=sys.stderr)  # fmt: skip


def _recorder_name(run: RunDir) -> str:
    return f"recorder-{run.key}-{run.token}"


@contextlib.contextmanager
def _scorer(config: Config, run: RunDir) -> Iterator[ScorerClient | None]:
    """The scorer, if checkpoints are scored. After a run that ends well, wait for its last score."""
    if not config.evaluation.every_images:
        yield None
        return
    scorer = start_scorer(config, _recorder_name(run))
    yield scorer
    if not scorer.close(config.evaluation.wait_s):
        print(
            "the last checkpoint was not scored; score it with python -m service.evaluate",
            file=sys.stderr,
        )
