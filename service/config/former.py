"""Settings of earlier versions: what took their place, and configurations that were stored with them."""

import math
from collections.abc import Mapping
from typing import Any

from models.families import FAMILIES

REPLACED = {
    "accumulation": "batch norm's groups are now training.norm_group, in images: the batch divided by"
    " it; what goes through at a time is scale.device_batch",
}
"""What took the place of a setting that is gone, by its name."""


def modernise(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that a run wrote down, in today's settings; one of today stays as it is.

    A phase's `accumulation` cut a batch into the groups of its batch norm.
    """
    try:
        parts = [phase.get("accumulation", 1) for phase in stored["phases"]]
        phases = [{k: v for k, v in phase.items() if k != "accumulation"} for phase in stored["phases"]]
        groups = [phase["batch"] // part for phase, part in zip(phases, parts, strict=True) if part > 1]
        family, training = FAMILIES[stored["model"]["family"]], stored["training"]
    except (LookupError, TypeError, AttributeError):
        return dict(stored)  # no configuration, which its validation says better
    if groups and family.config.has_batch_norm and isinstance(training, dict):
        batches = [phase["batch"] for phase in phases]
        training = {"norm_group": math.gcd(*groups, *batches)} | training
    return {**stored, "phases": phases, "training": training}
