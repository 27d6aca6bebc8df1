"""One run from its configuration to its end: Ray joined, the recorder started, the training supervised.

What `service.train` and every trial of a sweep have in common.
"""

import contextlib
import importlib.metadata
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from service.config import Config, flatten, to_yaml
from service.errors import ServiceError, UsageError
from service.progress import Progress
from service.recording.mlflow import Description
from service.recording.prometheus import free_port
from service.recording.recorder import start_recorder
from service.training.evaluator import start_evaluator
from service.training.run import RunDir, open_run
from service.training.supervisor import supervise

log = logging.getLogger(__name__)

PACKAGES = ("torch", "ray", "webdataset", "mlflow", "boto3", "numpy")
LOOPBACK = "127.0.0.1"
CLOSE_LIMIT_S = 60.0
ASK_LIMIT_S = 10.0
KNOCK_LIMIT_S = 10.0
# A folder on this node, in which a Prometheus looks for the runs that it is to scrape.
TARGETS_VARIABLE = "GAN_PROMETHEUS_TARGETS"
# On one machine nobody reclaims the node or scrapes Ray: what watches for it only takes from the cores.
LOCAL_RAY = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_METRICS_ENABLED": "0"}


def launch(config: Config, parent: str | None = None) -> None:
    """Train a settled configuration to its end, or go on with the run that its run.dir holds.

    `parent` is the key of an MLflow run that this one is nested below. Raises a ServiceError where it
    cannot be done, and KeyboardInterrupt where it is interrupted; the recorder is told either.
    """
    with (
        open_run(config) as run,
        join_ray(config),
        _recorder(config, run, parent) as recorder,
        _evaluator(config, run) as evaluator,
        Progress(lambda: _ask(recorder), run.end),
    ):
        supervise(config, run.storage, run.token, run.end, recorder, evaluator)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def join_ray(config: Config) -> Iterator[None]:
    """Join the Ray that RAY_ADDRESS names, or start one on this machine for the time of the run."""
    quiet: dict[str, Any] = {"logging_level": "WARNING", "log_to_driver": False}
    address = os.environ.get("RAY_ADDRESS", "local")
    if address != "local":
        try:
            _knock(address)
            ray.init(address=address, **quiet)
        except (OSError, ray.exceptions.RayError) as error:
            raise ServiceError(
                f"RAY_ADDRESS {address}: no Ray to join there ({error}); start one, correct the"
                " address and its token, or unset it to run on this machine alone"
            ) from error
    else:
        os.environ.update(LOCAL_RAY)
        # Told by name, or Ray's own helpers may ask another Ray of this machine after their run, which
        # does not know it, and end its workers.
        port = str(free_port(LOOPBACK))
        os.environ["RAY_GCS_SERVER_PORT"] = port
        told: dict[str, Any] = {"env_vars": {"RAY_ADDRESS": f"{LOOPBACK}:{port}"}}
        cpus = max(config.worker_counts[0] * config.scale.cpus, os.cpu_count() or 1)
        loopback: dict[str, Any] = {"_node_ip_address": LOOPBACK, "include_dashboard": False}
        ray.init(address="local", num_cpus=cpus, runtime_env=told, **loopback, **quiet)
        wanted = "scale.gpu" if config.scale.gpu else "evaluation.gpus" if config.evaluation.gpus else ""
        if wanted and not ray.cluster_resources().get("GPU"):
            ray.shutdown()
            raise UsageError(
                f"{wanted}: set, but this machine has no GPU; take it out, or let RAY_ADDRESS name a"
                " cluster that has some"
            )
    signal.signal(signal.SIGTERM, _interrupt)  # after ray.init, which sets its own
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """OSError where nothing listens at host:port; Ray itself would go on asking for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), KNOCK_LIMIT_S).close()


@contextlib.contextmanager
def _recorder(config: Config, run: RunDir, parent: str | None) -> Iterator[Any]:
    """The run's recorder, closed with the status that the run ends with."""
    host = config.tracking.prometheus_host
    port = config.tracking.prometheus_port or free_port(host)  # the same after a restart of the actor
    actor = start_recorder(
        _recorder_name(run),
        run_dir=config.run.dir,
        description=_description(config, run, parent),
        prometheus_host=host,
        prometheus_port=port,
        retry_s=config.storage.retry_s,
        intervals={
            "tracking_every_images": config.tracking.every_images,
            "checkpoint_every_images": config.checkpoint.every_images,
        },
        targets=os.environ.get(TARGETS_VARIABLE),
    )
    port = ray.get(actor.latest.remote())["metrics_port"]
    print(
        f"run {config.run.dir}, {run.end} images; live values at http://{host}:{port}/metrics",
        flush=True,
    )
    status = "FAILED"
    try:
        yield actor
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        _close(actor, status)


def _recorder_name(run: RunDir) -> str:
    return f"recorder-{run.key}-{run.token}"


@contextlib.contextmanager
def _evaluator(config: Config, run: RunDir) -> Iterator[Any]:
    """What scores checkpoints, if any are to be; after a run that ends well its last is waited for."""
    if not config.evaluation.every_images:
        yield None
        return
    actor = start_evaluator(config, _recorder_name(run))
    yield actor
    limit_s = config.evaluation.wait_s
    try:
        done = ray.get(actor.close.remote(limit_s), timeout=limit_s + ASK_LIMIT_S)
    except Exception as error:
        log.warning("event=evaluator_lost error=%s", error)
        done = False
    if not done:
        print("the last checkpoint was not scored; python -m service.evaluate does it", file=sys.stderr)


def _close(actor: Any, status: str) -> None:
    try:
        close = actor.close.remote(status, {}, CLOSE_LIMIT_S)
        trouble = ray.get(close, timeout=3 * CLOSE_LIMIT_S)
    except Exception as error:
        trouble = str(error)
    if trouble:
        print(f"MLflow did not get everything ({trouble}); the same command delivers the rest",
              file=sys.stderr)  # fmt: skip


def _ask(actor: Any) -> dict[str, Any]:
    """The recorder's newest values; nothing while it does not answer."""
    try:
        return ray.get(actor.latest.remote(), timeout=ASK_LIMIT_S)
    except Exception:  # restarting: the display waits
        return {}


def _description(config: Config, run: RunDir, parent: str | None) -> Description:
    local = config.tracking.uri is None
    versions = {f"version.{name}": importlib.metadata.version(name) for name in PACKAGES}
    return Description(
        uri=config.tracking.uri or f"sqlite:///{config.run.dir}/mlflow.db",
        experiment=config.tracking.experiment,
        artifacts=(Path(config.run.dir) / "artifacts").as_uri() if local else None,
        key=run.key,
        parent=parent,
        name=config.run.dir.rstrip("/").rpartition("/")[2],
        parameters={key: str(value) for key, value in flatten(config.model_dump()).items()},
        tags=versions
        | {
            "run.dir": config.run.dir,
            "data.fingerprint": run.index.fingerprint(),
            "mlflow.source.git.commit": git_commit(),
        },
        texts={"config.yaml": to_yaml(config)},
    )


def git_commit() -> str:
    """The commit of the code: from SERVICE_GIT_COMMIT, else from git, else "unknown"."""
    named = os.environ.get("SERVICE_GIT_COMMIT")
    if named:
        return named
    here = Path(__file__).parent
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return asked.stdout.strip()
