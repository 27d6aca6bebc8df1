"""Which settings identify a run: all that change a number of its training."""

import contextlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from service.config.schema import Config

# These change where a run goes and how it is kept, but no number of its training: what the data is, its
# fingerprint says.
MAY_DIFFER = (
    "run.dir",
    "run.images",
    "scale.",
    "training.capture",
    "training.compile",
    "tracking.",
    "storage.",
    "checkpoint.",
    "collapse.",
    "evaluation.",
    "data.url",
    "data.index_url",
    "data.grown",
    "data.readers",
    "data.decoders",
    "data.prefetch_bytes",
    "data.cache_",
    "data.max_bad_samples",
)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as `section.key` to value."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def differences(before: Mapping[str, Any], now: Config) -> list[str]:
    """One line for each changed setting that a resumed run must keep, with both values."""
    with contextlib.suppress(ValidationError):
        # settings newer than the run get their defaults
        before = Config.stored(before).model_dump()
    old, new = flatten(before), flatten(now.model_dump())
    return [
        f"{key}: the run was started with {old.get(key)!r}, now it is {new.get(key)!r}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and not key.startswith(MAY_DIFFER)
    ]
