"""The plain values of a training's state, fit for JSON; its tensors are in state.py."""

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from service.collapse.state import CollapseState
from service.documents import Clock, Count

PARTS = ("generator", "discriminator", "ema", "optimizer_g", "optimizer_d", "spectra")
"""The parts of a state that hold tensors."""

Amended = tuple[Clock, dict[str, float]]
"""An amendment: the clock from which it is in force, and the settings that it changes, by name."""


@dataclass(frozen=True)
class PlainState:
    """Everything that resumes, except tensors: plain values, fit for JSON."""

    seed: Count
    clock: Clock
    attempt: Count = 0
    amendments: Annotated[tuple[Amended, ...], Field(max_length=1000)] = ()
    collapse: CollapseState = field(default_factory=CollapseState)
    augment_p: Annotated[float, Field(ge=0, le=1)] = 0.0
