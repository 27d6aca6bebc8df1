"""Settings that change with the clock."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_serializer,
)

PIECES = 100
"""A schedule moves in so many steps: a GPU's graph, in which its values are, lasts for one of them."""


class Schedule(BaseModel):
    """Goes `from` a value at clock 0 `to` another at the clock `images`, and stays there."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    start: float = Field(alias="from")
    """The value at clock 0."""
    end: float = Field(alias="to")
    """The value at the end."""
    images: int = Field(ge=1)
    """The clock at which it ends."""
    shape: Literal["linear", "cosine"] = "linear"
    """How it goes: in a line, or along half a cosine."""

    def at(self, clock: int) -> float:
        """The value at this clock."""
        done = min(PIECES, PIECES * clock // self.images) / PIECES
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done

    @model_serializer
    def _plain(self) -> dict[str, Any]:
        return {"from": self.start, "to": self.end, "images": self.images, "shape": self.shape}


def _within(kind: Any) -> Callable[[Schedule], Schedule]:
    """A check that both of a schedule's values could stand for the setting."""
    adapter: TypeAdapter[Any] = TypeAdapter(kind)

    def check(schedule: Schedule) -> Schedule:
        for name, value in (("from", schedule.start), ("to", schedule.end)):
            try:
                adapter.validate_python(value)
            except ValidationError as error:
                raise ValueError(f"{name}: {value:g}: {error.errors()[0]['msg']}") from error
        return schedule

    return check


Rate = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
HalfLife = Annotated[int, Field(ge=1)]

ScheduledRate = Rate | Annotated[Schedule, AfterValidator(_within(Rate))]
ScheduledWeight = Weight | Annotated[Schedule, AfterValidator(_within(Weight))]
ScheduledShare = Share | Annotated[Schedule, AfterValidator(_within(Share))]
ScheduledDecay = Decay | Annotated[Schedule, AfterValidator(_within(Decay))]
ScheduledHalfLife = HalfLife | Annotated[Schedule, AfterValidator(_within(Weight))]


@dataclass(frozen=True)
class Scheduled:
    """The values at one clock of the settings that may have a schedule."""

    lr_generator: float
    lr_discriminator: float
    r1: float
    r2: float
    adam_beta2: float
    ema_half_life_images: float
    augment_p: float | None


def at(setting: float | Schedule | None, clock: int) -> float | None:
    """A setting's value at this clock."""
    return setting.at(clock) if isinstance(setting, Schedule) else setting
