"""What shapes the networks of every family: stages, the ladder, common settings. Imports no torch."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar


@dataclass(frozen=True)
class Stage:
    """Where on the ladder a network stands.

    `resolution` is in pixels. `alpha` in [0, 1] is the share of this rung's own output; the rest
    comes from the rung below, enlarged. At alpha 1 the rung stands alone.
    """

    resolution: int
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha is {self.alpha}; give a number in [0, 1]")

    @property
    def fading(self) -> bool:
        """Whether the rung below still has a share in the output."""
        return self.alpha < 1.0


def ladder(first: int, last: int) -> tuple[int, ...]:
    """The rungs from `first` to `last`, each twice the one before; ValueError if there are none."""
    rungs = [first]
    while 0 < rungs[-1] < last:
        rungs.append(rungs[-1] * 2)
    if first < 1 or rungs[-1] != last:
        raise ValueError(f"no ladder of doublings leads from {first} to {last} pixels")
    return tuple(rungs)


BASES = (4, 7)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The settings that all families share, checked on construction; a family adds its own.

    The ladder leads from `first_resolution` to `resolution`; without the former it has one rung.
    Resolutions are `base`·2ᵏ pixels, images have 1 or 3 `channels`, `classes` is None if there are
    no labels. ValueError names the setting that does not fit and the values that would.
    """

    resolution: int
    first_resolution: int | None = None
    channels: int = 3
    classes: int | None = None
    base: int = 4
    width: int
    latents: int

    lowest_doublings: ClassVar[int] = 0
    """The lowest rung is this many doublings above the base."""
    batch_group: ClassVar[int] = 1
    """The discriminator takes batches that are multiples of this."""
    has_batch_norm: ClassVar[bool] = False
    """One of the networks measures the batch, by batch norm."""
    has_styles: ClassVar[bool] = False
    """The generator maps latents to styles, so it can mix them, truncate in w, and add noise."""
    normalises_latents: ClassVar[bool] = False
    """The generator normalises latents to one length, so truncating them does nothing."""

    def __post_init__(self) -> None:
        if self.base not in BASES:
            raise ValueError(f"base {self.base}: networks start at 4 or 7 px; give one of these")
        if self.channels not in (1, 3):
            raise ValueError(f"channels {self.channels}: give 1 for gray images or 3 for RGB")
        for name in ("classes", "width", "latents"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: give 1 or more")
        lowest = self.base * 2**self.lowest_doublings
        if self.rungs[0] < lowest or self.base not in ladder_down(self.rungs[0]):
            name = "resolution" if self.first_resolution is None else "first resolution"
            raise ValueError(
                f"{name} {self.rungs[0]}: on base {self.base} the rungs are"
                f" {lowest}, {2 * lowest}, {4 * lowest}, …"
            )

    @cached_property
    def rungs(self) -> tuple[int, ...]:
        """Resolutions of the ladder, lowest first."""
        first = self.resolution if self.first_resolution is None else self.first_resolution
        return ladder(first, self.resolution)

    @property
    def doublings(self) -> int:
        """How many doublings lead from the base to the full resolution."""
        return (self.resolution // self.base).bit_length() - 1


def ladder_down(resolution: int) -> list[int]:
    """The resolution and its repeated halves, as long as they are whole numbers."""
    halves = [resolution]
    while halves[-1] % 2 == 0:
        halves.append(halves[-1] // 2)
    return halves
