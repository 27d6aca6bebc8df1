"""Every environment variable that the service itself reads; what MLflow, Ray and boto3 read is theirs.

A value that cannot be meant is a UsageError that names the variable. An empty one counts as not set.
"""

import logging
import os
from pathlib import Path

from service.errors import UsageError

RAY_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""For a Ray that no other machine joins: else it replaces a loopback address by the machine's own."""


def log_level() -> str:
    """LOG_LEVEL, in any case; WARNING if it is not set."""
    given = _value("LOG_LEVEL")
    level, known = given.upper() or "WARNING", logging.getLevelNamesMapping()
    if level not in known:
        raise UsageError(f"LOG_LEVEL={given}: no such level; choose one of {', '.join(known)}")
    return level


def ray_address() -> str:
    """RAY_ADDRESS; "local" if it is not set."""
    return _value("RAY_ADDRESS") or "local"


def is_ray_job() -> bool:
    """Whether `ray job submit` started this process."""
    return bool(_value("RAY_JOB_CONFIG_JSON_ENV_VAR"))


def local_rank() -> int:
    """LOCAL_RANK: which of its node's GPUs a worker has. Ray Train sets it."""
    return int(os.environ["LOCAL_RANK"])


def prometheus_targets() -> str | None:
    """GAN_PROMETHEUS_TARGETS: a folder on this node where a Prometheus looks for runs to scrape."""
    return _value("GAN_PROMETHEUS_TARGETS") or None


def cache_home() -> Path:
    """XDG_CACHE_HOME, or ~/.cache."""
    return Path(_value("XDG_CACHE_HOME") or "~/.cache").expanduser()


def s3_endpoint() -> str | None:
    """The S3 server that AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL names; None for Amazon's."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        address = _value(name)
        if address and not address.startswith(("http://", "https://")):
            raise UsageError(f"{name}={address}: names no protocol; write http://… or https://…")
        if address:
            return address
    return None


def has_region() -> bool:
    """Whether AWS_DEFAULT_REGION names the region of the buckets."""
    return bool(_value("AWS_DEFAULT_REGION"))


def _value(name: str) -> str:
    return os.environ.get(name, "").strip()
