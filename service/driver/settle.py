"""Completes a configuration with what depends on this machine. Imports neither torch nor Ray."""

import os
from pathlib import Path

from service import environment
from service.config import Config
from service.config.vocabulary import REFERENCES
from service.errors import UsageError

ADDRESSES = (
    "run.dir",
    "run.init",
    "data.url",
    "data.index_url",
    "evaluation.weights",
    "evaluation.reference",
    "evaluation.attributes",
)
"""Settings that may be paths, which workers on other nodes must find too."""

# Linux's names for CPU units that multiply bf16.
BF16_UNITS = {"avx512_bf16", "amx_bf16"}


def settle(config: Config) -> Config:
    """Fill in what depends on this machine: absolute paths and precision. UsageError if that fails."""
    precision = config.training.precision
    if precision == "auto":
        precision = "bf16" if config.scale.gpu or has_bf16_units() else "fp32"
    changes: dict[str, dict[str, str]] = {"training": {"precision": precision}}
    for key in ADDRESSES:
        section, _, name = key.partition(".")
        if address := getattr(getattr(config, section), name):
            changes.setdefault(section, {})[name] = _absolute(key, address)
    return config.model_copy(
        update={
            section: getattr(config, section).model_copy(update=change)
            for section, change in changes.items()
        }
    )


def _absolute(key: str, path: str) -> str:
    if "://" in path or (key == "evaluation.reference" and path in REFERENCES):
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
