"""Amendments: the changes that a rewind makes to training settings."""

import math
from collections.abc import Mapping

from pydantic import ValidationError

from service.cli import suggest
from service.config.describe import explain
from service.config.schedule import Schedule
from service.config.sections import Amendment, TrainingSettings

SECTION = "training."
# Every step reads these settings again, so a rewind may change them.
AMENDABLE = (
    "training.lr_generator",
    "training.lr_discriminator",
    "training.d_steps",
    "training.r1",
    "training.r1_every",
    "training.r2",
    "training.r2_every",
    "training.gradient_penalty",
    "training.gradient_penalty_every",
    "training.augment_p",
    "training.augment_target",
    "training.drift",
    "training.orthogonal",
    "training.style_mixing",
    "training.ema_half_life_images",
)


def resolve(training: TrainingSettings, amendment: Amendment, where: str) -> dict[str, float]:
    """The values that an amendment gives its settings; ValueError, naming `where`, if it cannot."""
    if not amendment:
        raise ValueError(f"{where}: names no setting; give one or more of {', '.join(AMENDABLE)}")
    values = {}
    for key, change in amendment.items():
        if key not in AMENDABLE:
            known = f"an amendment may change {', '.join(AMENDABLE)}"
            hint = suggest(key, AMENDABLE, otherwise=known)
            raise ValueError(f"{where}: {key} cannot be amended; {hint}")
        before = getattr(training, key.removeprefix(SECTION))
        try:
            if isinstance(before, Schedule) and str(change).startswith("x"):
                values[f"{key}.from"] = _amended(before.start, change)
                values[f"{key}.to"] = _amended(before.end, change)
            else:
                values[key] = _amended(before, change)
        except (ValueError, OverflowError) as error:
            whole = "a whole number" if isinstance(before, int) else "a value"
            raise ValueError(
                f"{where}: {key}: {change!r} is neither {whole} nor a factor such as x0.5"
            ) from error
    return values


def augment_more(training: TrainingSettings) -> dict[str, float] | None:
    """The values with which D sees more changed images; None if it sees none changed, or all it can.

    A driven chance gets a target that is a fifth lower, and of a fixed one the rest to 1 is halved.
    """
    chance = training.augment_p
    if training.augment == "ada" and chance is None:
        return {"training.augment_target": 0.8 * training.augment_target}
    if training.augment != "none" and isinstance(chance, float) and chance < 1:
        return {"training.augment_p": (1 + chance) / 2}
    return None


def _amended(before: float | Schedule | None, change: float | str) -> float:
    """The setting after the change. A whole number stays whole: its product with a factor is rounded."""
    text = str(change)
    if text.startswith("x") and not isinstance(before, Schedule):
        if before is None:
            raise ValueError("nothing to multiply")
        value = before * float(text[1:])
    else:
        value = float(text)
    if not math.isfinite(value):
        raise ValueError("not finite")
    if not isinstance(before, int):
        return value
    if not text.startswith("x") and value != round(value):
        raise ValueError("not whole")
    return round(value)


def amend(training: TrainingSettings, values: Mapping[str, float], where: str) -> TrainingSettings:
    """The section with only these values changed; `resolve` gives them.

    ValueError, naming `where`, if a value is out of its bounds.
    """
    changed = training.model_dump()
    for key, value in values.items():
        setting, _, part = key.removeprefix(SECTION).partition(".")
        changed[setting] = changed[setting] | {part: value} if part else value
    try:
        return TrainingSettings(**changed)
    except ValidationError as error:
        raise ValueError(explain(error, where, TrainingSettings, SECTION)) from error
