"""The Ray cluster of a command: the one at RAY_ADDRESS, or one that lives as long as the run."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import ray
from ray._private import ray_constants

from service import environment
from service.config import Config
from service.documents import reason
from service.errors import ServiceError, UsageError
from service.recording.prometheus import free_port
from service.training.heart import first_limit_s

LOOPBACK = "127.0.0.1"
KNOCK_LIMIT_S = 10.0
# Ray Train looks for dead workers this often, instead of every two seconds.
WATCHFUL = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
# On one machine nobody reclaims the node or scrapes Ray, and watching for it costs CPU time.
LOCAL_RAY = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_METRICS_ENABLED": "0"}
# NCCL's own watch over its collectives; it ends a group in which some ranks are ahead of others.
NCCL_WATCH = {"RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR": "1", "RAY_TRAIN_NCCL_RAS_ACTION": "fail"}
QUIET: dict[str, Any] = {"logging_level": "WARNING", "log_to_driver": False}


@contextlib.contextmanager
def join_ray(config: Config) -> Iterator[None]:
    """Join the Ray at RAY_ADDRESS; if it is unset or empty, start one that lives as long as the run.

    ServiceError if none answers there, UsageError if this machine lacks the GPU that the run needs.
    """
    for name, value in (WATCHFUL | _nccl_watch(config)).items():
        os.environ.setdefault(name, value)
    with joined(max(config.worker_counts[0] * config.scale.cpus, os.cpu_count() or 1)):
        if environment.ray_address() == "local":
            _check_gpu(config)
        yield


@contextlib.contextmanager
def joined(cpus: int) -> Iterator[None]:
    """Join the Ray at RAY_ADDRESS, or start one here with so many CPUs, which lives as long as this.

    ServiceError if none answers there.
    """
    address = environment.ray_address()
    if address == "local":
        _start_local(cpus)
    else:
        _join(address)
    signal.signal(signal.SIGTERM, _interrupt)  # after ray.init, which sets its own
    try:
        yield
    finally:
        ray.shutdown()


def _nccl_watch(config: Config) -> dict[str, str]:
    """Ray Train's variables for NCCL's watch, which waits as long as a worker in time may take."""
    if not config.scale.gpu:
        return {}
    return NCCL_WATCH | {"RAY_TRAIN_NCCL_RAS_CONFIRM_DURATION_S": str(first_limit_s(config))}


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _join(address: str) -> None:
    try:
        _knock(address)
        ray.init(address=address, **QUIET)
    except (OSError, ray.exceptions.RayError) as error:
        raise ServiceError(
            f"RAY_ADDRESS {address}: no Ray cluster answers there ({error}); start one, correct the"
            " address and its token, or unset it to run on this machine alone"
        ) from error


def _start_local(cpus: int) -> None:
    os.environ.update(LOCAL_RAY)
    # Under `uv run`, Ray would pack the folder and unpack it for the workers, which share this machine.
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
    # Without a name, Ray's own helpers may ask another Ray on this machine about their run. That one
    # does not know the run, so they would end its workers.
    port = str(free_port(LOOPBACK))
    os.environ["RAY_GCS_SERVER_PORT"] = port
    everywhere: dict[str, Any] = {"env_vars": {"RAY_ADDRESS": f"{LOOPBACK}:{port}"}}
    os.environ.update(environment.RAY_ALONE)
    ray_constants.ENABLE_RAY_CLUSTER = False
    loopback: dict[str, Any] = {"_node_ip_address": LOOPBACK, "include_dashboard": False}
    try:
        ray.init(address="local", num_cpus=cpus, runtime_env=everywhere, **loopback, **QUIET)
    except Exception as error:  # Ray raises a bare one if it has not started within half a minute
        raise ServiceError(
            f"Ray did not start on this machine ({reason(error)}); if the machine is busy, run the same"
            " command again"
        ) from error


def _check_gpu(config: Config) -> None:
    """UsageError if this machine lacks the GPU that the run needs."""
    wanted = "scale.gpu" if config.scale.gpu else "evaluation.gpus" if config.evaluation.gpus else ""
    if wanted and not ray.cluster_resources().get("GPU"):
        raise UsageError(
            f"{wanted}: set, but this machine has no GPU; unset it, or set RAY_ADDRESS to a"
            " cluster with GPUs"
        )


def _knock(address: str) -> None:
    """OSError if nothing listens at host:port; Ray itself would retry for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), KNOCK_LIMIT_S).close()
