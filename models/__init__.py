"""The networks: pure torch, free of Ray, files, network and clock.

`build("biggan", resolution=32, …)` gives a generator and a discriminator; both take a `Stage`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from models import biggan
from models.growth import Growing, Stage


@dataclass(frozen=True)
class Family:
    """A configuration class, which checks itself, and the function that builds from it."""

    config: type
    build: Callable[[Any], tuple[Growing, Growing]]


FAMILIES: dict[str, Family] = {"biggan": Family(biggan.BigGANConfig, biggan.build)}


def configure(family: str, **settings: Any) -> Any:
    """The family's checked configuration; ValueError says what does not fit."""
    if family not in FAMILIES:
        raise ValueError(f"family {family!r} is unknown; choose of {[*FAMILIES]}")
    return FAMILIES[family].config(**settings)


def build(family: str, **settings: Any) -> tuple[Growing, Growing]:
    """(generator, discriminator) of a family, initialised from torch's default random generator.

    `generator(latents [n, z], labels [n], stage)` gives images [n, c, r, r] in [-1, 1];
    `discriminator(images, labels, stage)` gives logits [n]. ValueError on settings that don't fit.
    """
    return FAMILIES[family].build(configure(family, **settings))


__all__ = ["FAMILIES", "Family", "Growing", "Stage", "build", "configure"]
