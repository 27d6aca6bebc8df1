"""The networks: pure torch, free of Ray, files, network and clock.

`build("biggan", resolution=32, …)` gives a generator and a discriminator; both take a `Stage`. Importing
this package imports no torch: that happens when networks are built.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from models.families import FAMILIES, Family
from models.shape import Shape, Stage

if TYPE_CHECKING:
    from torch import Tensor

    from models.growth import GrowingDiscriminator, GrowingGenerator


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


def build(family: str, **settings: Any) -> "tuple[GrowingGenerator, GrowingDiscriminator]":
    """(generator, discriminator) of a family, initialised from torch's default random generator.

    `generator(latents [n, z], labels [n], stage)` gives images [n, c, r, r], nominally in [-1, 1];
    `discriminator(images, labels, stage)` gives logits [n]. Without classes, labels are ignored.
    ValueError if settings do not fit.
    """
    config = configure(family, **settings)
    return FAMILIES[family].build(config)


def restore_generator(
    family: str, weights: "Mapping[str, Tensor]", **settings: Any
) -> "GrowingGenerator":
    """The family's generator with these weights, in evaluation mode, without gradients.

    `weights` is the state of another such generator on the CPU, and becomes this one's. ValueError or
    RuntimeError if settings or weights do not fit.
    """
    import torch

    with torch.device("meta"):  # no initial weights are drawn, for these replace them
        generator, _ = build(family, **settings)
    for name, expected in generator.state_dict().items():
        tensor = weights.get(name)
        if tensor is not None and (tensor.device.type, tensor.dtype) != ("cpu", expected.dtype):
            raise ValueError(
                f"{name}: a {tensor.dtype} on {tensor.device}, not a {expected.dtype} on the CPU"
            )
    generator.load_state_dict(weights, assign=True)
    return generator.requires_grad_(False).eval()


def paper(family: str, resolution: int) -> dict[str, Any]:
    """The family's published settings at a resolution, as keyword arguments for `build`."""
    return FAMILIES[family].paper(resolution)


__all__ = [
    "FAMILIES",
    "Family",
    "Shape",
    "Stage",
    "build",
    "configure",
    "paper",
    "restore_generator",
]
