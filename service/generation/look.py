"""The names of the sheets, and how they are drawn. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

SheetName = Literal["grid", "truncation", "interpolation", "timelapse", "mixing", "noise"]
Drawn = Literal[SheetName, "images"]
"""A sheet, or separate images."""
ANIMATED: set[SheetName] = {"interpolation", "timelapse"}
NEEDS_STYLES: set[SheetName] = {"mixing", "noise"}

SHOWN_PIXELS = 64
STANDING_BATCHES = 16


@dataclass(frozen=True)
class Look:
    """How a sheet is drawn.

    `rows` and `columns` count images. `psi` is one number, or one for each layer that takes a style.
    `pixels` is the side to which smaller images are enlarged. A walk takes `steps` from end to end.
    """

    seed: int = 0
    rows: int = 8
    columns: int = 10
    truncation: float | None = None
    psi: float | tuple[float, ...] = 1.0
    cutoff: int | None = None
    noise: bool = True
    steps: int = 10
    animated: bool = False
    standing_batches: int = STANDING_BATCHES
    pixels: int = SHOWN_PIXELS
