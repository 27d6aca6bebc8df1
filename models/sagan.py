"""SAGAN (Zhang et al. 2019): residual networks with spectral norm in both and self-attention.

Beside BigGAN's, the generator takes all latents at once, and each batch norm has a gain and a bias
of its own for every class. The discriminator is the same.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from models import growth
from models.biggan import (
    Discriminator,
    GeneratorBlock,
    GeneratorHead,
    ResidualConfig,
    paper_attention,
    to_map,
)
from models.growth import Growing, Stage
from models.layers import BatchNorm, SelfAttention, SNLinear


@dataclass(frozen=True, kw_only=True)
class SAGANConfig(ResidualConfig):
    """Latents of any length."""

    width: int = 64
    latents: int = 128


def paper(resolution: int) -> dict[str, Any]:
    """The usual settings, beside the width: 1000 classes."""
    return {"resolution": resolution, "classes": 1000, "attention": paper_attention(resolution)}


class Generator(Growing):
    """Images [n, channels, r, r] in [-1, 1] from latents [n, latents] and labels [n] (int64)."""

    def __init__(self, config: SAGANConfig):
        super().__init__()
        self.rungs = config.rungs
        self.base = config.base
        widths = config.generator_widths
        self.dense = SNLinear(config.latents, widths[0] * config.base * config.base)
        self.blocks = nn.ModuleDict()
        self.attention = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        norm = partial(BatchNorm, classes=config.classes)
        resolution = config.base
        for inputs, outputs in itertools.pairwise(widths):
            resolution *= 2
            rung = str(resolution)
            self.blocks[rung] = GeneratorBlock(inputs, outputs, norm)
            if resolution == config.attention:
                self.attention[rung] = SelfAttention(outputs)
            if resolution in self.rungs:
                self.heads[rung] = GeneratorHead(outputs, config.channels)

    def forward(self, latents: Tensor, labels: Tensor, stage: Stage) -> Tensor:
        """Images at `stage.resolution`; ValueError where the ladder has no such rung."""
        self.check_stage(stage)
        x = to_map(self.dense(latents), self.base)
        features = {}
        for rung, block in self.blocks.items():
            x = block(x, labels)
            if rung in self.attention:
                x = self.attention[rung](x)
            features[int(rung)] = x
            if int(rung) == stage.resolution:
                break
        return growth.draw(features, self.heads, stage)

    def head_of(self, rung: int) -> nn.Module:
        return self.heads[str(rung)]

    def joins_at(self, rung: int) -> Iterable[nn.Module]:
        yield self.blocks[str(rung)]
        if str(rung) in self.attention:
            yield self.attention[str(rung)]


def build(config: SAGANConfig) -> tuple[Generator, Discriminator]:
    """Both networks, initialised from torch's default random generator."""
    return Generator(config), Discriminator(config)
