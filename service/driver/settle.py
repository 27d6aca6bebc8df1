"""Completes a configuration with what depends on this machine. Imports neither torch nor Ray."""

import os
from pathlib import Path

from service import environment
from service.config import Config
from service.errors import UsageError

# Linux's names for CPU units that multiply bf16.
BF16_UNITS = {"avx512_bf16", "amx_bf16"}


def settle(config: Config) -> Config:
    """Fill in what depends on this machine: absolute paths and precision. UsageError if that fails."""
    run = {"dir": _absolute("run.dir", config.run.dir)}
    if config.run.init:
        run["init"] = _absolute("run.init", config.run.init)
    data = {"url": _absolute("data.url", config.data.url)}
    if config.data.index_url:
        data["index_url"] = _absolute("data.index_url", config.data.index_url)
    precision = config.training.precision
    if precision == "auto":
        precision = "bf16" if config.scale.gpu or has_bf16_units() else "fp32"
    return config.model_copy(
        update={
            "run": config.run.model_copy(update=run),
            "data": config.data.model_copy(update=data),
            "training": config.training.model_copy(update={"precision": precision}),
        }
    )


def _absolute(key: str, path: str) -> str:
    if "://" in path:
        return path
    if not os.path.isabs(path) and environment.is_ray_job():
        raise UsageError(
            f"{key}: {path} is a relative path, which means nothing on a cluster's nodes; give an"
            " absolute path that all nodes share, or an s3:// address"
        )
    return os.path.abspath(os.path.expanduser(path))


def has_bf16_units() -> bool:
    """Whether this CPU multiplies bf16 in hardware; False if /proc/cpuinfo is missing."""
    try:
        return not BF16_UNITS.isdisjoint(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
