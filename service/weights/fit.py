"""Which of the given weights a network takes: those with the same name and shape.

Generators name their blocks by the size that these lead to, so another ladder or a higher resolution
takes the lower rungs. A discriminator's blocks are numbered from the image down, though all end at the
base; so they are compared by how many follow them.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

import models
from models.growth import GrowingDiscriminator
from models.layers import SelfAttention
from models.shape import Shape
from service.config import Config
from service.errors import UsageError
from service.weights.biggan_pytorch import Weights
from service.weights.source import Given


@dataclass(frozen=True)
class Fitted:
    """The weights that new networks take, and the names of those that stay as they are drawn.

    Names are `generator/…` and `discriminator/…`.
    """

    taken: Weights
    drawn: tuple[str, ...]


def fit(given: Given, config: Config) -> Fitted:
    """What the run's networks take; UsageError if no weight of a network that was given fits.

    Biases and gains alone, of which a few always fit, would be nothing.
    """
    if given.family != config.model.family:
        raise UsageError(
            f"run.init: {given.address} holds {given.family}, but model.family is"
            f" {config.model.family}; make them equal, or leave run.init out"
        )
    with torch.device("meta"):
        theirs = models.build(given.family, **given.settings)
        ours = models.build(config.model.family, **config.model_settings)
    sources = {
        "generator": (ours[0], given.generator),
        "discriminator": (ours[1], _renamed(given, theirs[1], ours[1])),
    }
    taken: Weights = {}
    drawn: list[str] = []
    for part, (network, source) in sources.items():
        expected = network.state_dict()
        matching = _match(expected, source)
        if source and not any(name.endswith("weight") for name in matching):
            raise _no_fit(given, config.shape, part)
        taken |= {f"{part}/{name}": tensor for name, tensor in matching.items()}
        drawn += [f"{part}/{name}" for name in expected if name not in matching]
    return Fitted(taken, tuple(drawn))


def _no_fit(given: Given, shape: Shape, part: str) -> UsageError:
    mine, theirs = dataclasses.asdict(shape), given.settings
    other = [
        f"{key} is {theirs[key]} there, {mine[key]} here" for key in mine if mine[key] != theirs[key]
    ]
    return UsageError(
        f"run.init: no weight of the {part} in {given.address} fits this run's ({', '.join(other)});"
        " make these settings of the model equal, or leave run.init out"
    )


def _match(ours: Weights, theirs: Weights) -> Weights:
    """Those of their tensors that have the name and the shape of one of ours.

    Singular vectors belong to a weight, and go with it only.
    """
    same = {
        name: theirs[name]
        for name, like in ours.items()
        if name in theirs and theirs[name].shape == like.shape and theirs[name].is_floating_point()
    }

    def is_alone(name: str) -> bool:
        layer, _, word = name.rpartition(".")
        return word in ("u", "v") and f"{layer}.weight" not in same

    return {name: tensor for name, tensor in same.items() if not is_alone(name)}


def _renamed(given: Given, theirs: GrowingDiscriminator, ours: GrowingDiscriminator) -> Weights:
    """The given discriminator's weights by the names that the same blocks have in ours."""
    names = {key: name for name, key in _keys(theirs).items()}
    return {
        name: given.discriminator[names[key]]
        for name, key in _keys(ours).items()
        if names.get(key) in given.discriminator
    }


def _keys(discriminator: GrowingDiscriminator) -> dict[str, str]:
    """Each tensor's name with its block's number replaced by the block's kind and its way to the end."""
    blocks: dict[str, nn.Module] = {}
    for chain in (*(f"descents.{rung}" for rung in reversed(discriminator.rungs[1:])), "tail"):
        for number, block in discriminator.get_submodule(chain).named_children():
            blocks[f"{chain}.{number}"] = block
    places, behind = {}, 0
    for name, block in reversed(blocks.items()):
        places[name] = f"{type(block).__name__} before {behind} others"
        behind += not isinstance(block, SelfAttention)  # it may stand anywhere, or nowhere
    return {name: _key(name, places) for name in discriminator.state_dict()}


def _key(name: str, places: dict[str, str]) -> str:
    block = next((block for block in places if name.startswith(f"{block}.")), "")
    return places.get(block, "") + name.removeprefix(block)
