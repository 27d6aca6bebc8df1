"""The typed configuration of a run. Knows nothing of data, storage's content or Ray."""

from service.config.schema import Config
from service.config.sections import (
    Amendment,
    CollapseSettings,
    EvaluationSettings,
    Phase,
    TrainingSettings,
)

__all__ = [
    "Amendment",
    "CollapseSettings",
    "Config",
    "EvaluationSettings",
    "Phase",
    "TrainingSettings",
]
