"""The networks: pure torch, free of Ray, files, network and clock.

`build("biggan", resolution=32, …)` gives a generator and a discriminator; both take a `Stage`.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from models import biggan, biggan_deep, dcgan, mnist_pggan, progan, sagan, stylegan
from models.growth import GrowingDiscriminator, GrowingGenerator, Mixing, Shape, Stage


@dataclass(frozen=True)
class Family:
    """A family: a configuration class that checks itself, its builder, and its paper's settings."""

    config: type[Shape]
    build: Callable[[Any], tuple[GrowingGenerator, GrowingDiscriminator]]
    paper: Callable[[int], dict[str, Any]]


FAMILIES: dict[str, Family] = {
    "dcgan": Family(dcgan.DCGANConfig, dcgan.build, dcgan.paper),
    "sagan": Family(sagan.SAGANConfig, sagan.build, sagan.paper),
    "biggan": Family(biggan.BigGANConfig, biggan.build, biggan.paper),
    "biggan-deep": Family(biggan_deep.BigGANDeepConfig, biggan_deep.build, biggan_deep.paper),
    "progan": Family(progan.ProGANConfig, progan.build, progan.paper),
    "stylegan": Family(stylegan.StyleGANConfig, stylegan.build, stylegan.paper),
    "mnist-pggan": Family(mnist_pggan.MnistPGGANConfig, mnist_pggan.build, mnist_pggan.paper),
}


def configure(family: str, **settings: Any) -> Shape:
    """The family's checked configuration; ValueError names the setting that does not fit."""
    if family not in FAMILIES:
        raise ValueError(f"family {family!r} is unknown; choose one of {', '.join(FAMILIES)}")
    config = FAMILIES[family].config
    fields = {field.name: field for field in dataclasses.fields(config)}
    for name, value in settings.items():
        if name not in fields:
            raise ValueError(
                f"{name} {value!r}: {family} has no such setting; its settings are {', '.join(fields)}"
            )
    for name, field in fields.items():
        if name not in settings and field.default is dataclasses.MISSING:
            raise ValueError(f"{name} is missing; {family} needs it")
    return config(**settings)


def build(family: str, **settings: Any) -> tuple[GrowingGenerator, GrowingDiscriminator]:
    """(generator, discriminator) of a family, initialised from torch's default random generator.

    `generator(latents [n, z], labels [n], stage)` gives images [n, c, r, r], nominally in [-1, 1];
    `discriminator(images, labels, stage)` gives logits [n]. Without classes, labels are ignored.
    ValueError if settings do not fit.
    """
    config = configure(family, **settings)
    return FAMILIES[family].build(config)


def paper(family: str, resolution: int) -> dict[str, Any]:
    """The family's published settings at a resolution, as keyword arguments for `build`."""
    return FAMILIES[family].paper(resolution)


__all__ = [
    "FAMILIES",
    "Family",
    "GrowingDiscriminator",
    "GrowingGenerator",
    "Mixing",
    "Shape",
    "Stage",
    "build",
    "configure",
    "paper",
]
