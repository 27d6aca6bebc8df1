"""State dictionaries of BigGAN-PyTorch (github.com/ajbrock/BigGAN-PyTorch), by this service's names.

BigGAN and BigGAN-deep are read, with a shared embedding and hierarchical latents, as its launch scripts
have them. The names are tables; nothing else of that project is needed.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import models
from models.families import GENERATOR_CHANNELS
from models.growth import Growing
from models.layers import spectral_iterate

Weights = dict[str, Tensor]

GENERATOR = {
    "biggan": {
        "embedding.table": "shared",
        "dense": "linear",
        "blocks.{rung}": "blocks.{doubling}.0",
        "attention.{rung}": "blocks.{doubling}.1",
        "attention.{rung}.gain": "blocks.{doubling}.1.gamma",
        "heads.{last}.norm": "output_layer.0",
        "heads.{last}.conv": "output_layer.2",
    },
    "biggan-deep": {
        "embedding.table": "shared",
        "dense": "linear",
        "blocks.{rung}.keep": "blocks.{even}.0",
        "blocks.{rung}.up": "blocks.{odd}.0",
        "attention.{rung}": "blocks.{odd}.1",
        "attention.{rung}.gain": "blocks.{odd}.1.gamma",
        "heads.{last}.norm": "output_layer.0",
        "heads.{last}.conv": "output_layer.2",
    },
}
"""Modules of generators: ours to theirs, once for each doubling of the size."""

DISCRIMINATOR = {
    "biggan": {
        "heads.{last}": "blocks.0.0",
        "projection.linear": "linear",
        "projection.embedding": "embed",
    },
    "biggan-deep": {
        "heads.{last}": "input_conv",
        "projection.linear": "linear",
        "projection.embedding": "embed",
    },
}
"""Modules of discriminators: ours to theirs. Those of our tail are their other blocks, in order."""
TAIL = {"tail.{place}": "{block}", "tail.{place}.gain": "{block}.gamma"}

WITHIN = {
    "norm1": "bn1",
    "norm2": "bn2",
    "norms.0": "bn1",
    "norms.1": "bn2",
    "norms.2": "bn3",
    "norms.3": "bn4",
    "convs.0": "conv1",
    "convs.1": "conv2",
    "convs.2": "conv3",
    "convs.3": "conv4",
    "last": "conv4",
    "shortcut": "conv_sc",
    "missing": "conv_sc",
    "query": "theta",
    "key": "phi",
    "value": "g",
    "out": "o",
    "u": "u0",
    "mean": "stored_mean",
    "variance": "stored_var",
}
"""Names within a module: ours to theirs."""


def convert(
    generator: Mapping[str, Tensor], discriminator: Mapping[str, Tensor]
) -> tuple[str, dict[str, Any], Weights, Weights]:
    """The family, its settings for `models.build`, and the weights of both networks by our names.

    A network without weights stays without. Their forwards iterate the stored vectors once before use,
    ours do not: the vectors that come back are iterated once. ValueError says which tensor is missing
    or of another shape.
    """
    family, settings = _settings(generator)
    with torch.device("meta"):
        networks = models.build(family, **settings)
    doublings = models.configure(family, **settings).doublings
    base, last = settings["base"], settings["resolution"]
    places = _expand(GENERATOR[family], [_doubling(base, i) for i in range(doublings)], last)
    weights = _translate(networks[0], generator, places, base)
    judging = {}
    if discriminator:
        heads = DISCRIMINATOR[family]
        tail = [block for block in _blocks(discriminator) if block not in heads.values()]
        steps = [{"place": i, "block": block} for i, block in enumerate(tail)]
        places = _expand(heads | TAIL, steps, last)
        judging = _translate(networks[1], discriminator, places, base)
    return family, settings, weights, judging


def _settings(generator: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """The family and the settings that a generator's shapes tell."""
    try:
        family = "biggan-deep" if "blocks.0.0.conv4.weight" in generator else "biggan"
        deep = family == "biggan-deep"
        a_doubling = 2 if deep else 1
        places = [block for block in _blocks(generator) if block.endswith(".0")]
        doublings = len(places) // a_doubling
        first = generator["blocks.0.0.conv1.weight"].shape[1]
        base = math.isqrt(len(generator["linear.bias"]) // first)
        classes, embedding = generator["shared.weight"].shape
        inputs = generator["linear.weight"].shape[1]
        attended = [int(block.split(".")[1]) for block in _blocks(generator) if block.endswith(".1")]
        attention = base << (attended[0] // a_doubling + 1) if attended else None
        return family, {
            "resolution": base << doublings,
            "base": base,
            "width": first // GENERATOR_CHANNELS[doublings][0],
            "latents": inputs - embedding if deep else inputs * (doublings + 1),
            "embedding": embedding,
            "classes": classes,
            "channels": generator["output_layer.2.weight"].shape[0],
            "attention": attention,
        }
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(f"no generator of that project ({error})") from error


def _blocks(state: Mapping[str, Tensor]) -> list[str]:
    """The blocks `blocks.i.j` of a network, in the order in which they follow each other."""
    found = {match[0] for name in state if (match := re.match(r"blocks\.\d+\.\d+", name))}
    return sorted(found, key=lambda block: [int(number) for number in block.split(".")[1:]])


def _doubling(base: int, number: int) -> dict[str, int]:
    """What the tables say of the doubling with this number, from 0."""
    rung = base << (number + 1)
    return {"rung": rung, "doubling": number, "even": 2 * number, "odd": 2 * number + 1}


def _expand(table: dict[str, str], steps: list[dict[str, Any]], last: int) -> dict[str, str]:
    """The table with each step's numbers or names in it."""
    return {
        ours.format(last=last, **step): theirs.format(last=last, **step)
        for ours, theirs in table.items()
        for step in (steps if re.search(r"rung|place", ours) else [{}])
    }


def _translate(
    network: Growing, state: Mapping[str, Tensor], places: dict[str, str], base: int
) -> Weights:
    """The state of `network`, a network on the meta device, from theirs."""
    weights = {}
    for name, like in network.state_dict().items():
        if name.endswith(".v"):
            continue
        theirs = _their_name(name, places)
        if theirs not in state:
            raise ValueError(f"{theirs} is missing")
        tensor = state[theirs].detach().to("cpu", torch.float32)
        if tensor.squeeze().shape != like.squeeze().shape:
            raise ValueError(f"{theirs} is {[*tensor.shape]}, not {[*like.shape]}")
        weights[name] = tensor.reshape(like.shape).clone()
    for name in {"dense.weight", "dense.bias", "dense.u"} & weights.keys():
        weights[name] = _channels_last(weights[name], base)
    others = {name: like for name, like in network.state_dict().items() if name not in weights}
    weights |= {name: torch.zeros(like.shape) for name, like in others.items()}
    network.load_state_dict(weights, assign=True)
    spectral_iterate(network)
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}


def _their_name(name: str, places: dict[str, str]) -> str:
    """Their name of a tensor: its module's place, then the names within."""
    ours = max((place for place in places if f"{name}.".startswith(f"{place}.")), key=len, default="")
    rest = name.removeprefix(ours)
    for word, other in WITHIN.items():
        rest = re.sub(rf"\.{re.escape(word)}(?=\.|$)", f".{other}", rest)
    return places.get(ours, "") + rest


def _channels_last(rows: Tensor, base: int) -> Tensor:
    """Rows of the dense layer, which they order (channel, height, width), with the channel last."""
    return rows.unflatten(0, (-1, base, base)).movedim(0, 2).flatten(0, 2)
