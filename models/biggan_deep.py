"""BigGAN-deep (Brock et al. 2019, appendix B): two bottleneck blocks a resolution, shortcuts that keep.

The latents are not split: with the label's embedding, all of them condition every batch norm. A
shortcut drops or gains channels, but convolves none of those that it carries.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import biggan, growth
from models.biggan import GeneratorHead, Projection, ResidualConfig, SharedEmbedding, to_map
from models.growth import Growing, Stage
from models.layers import BatchNorm, SelfAttention, SNConv2d, SNLinear

BOTTLENECK = 4
# Tables 7 to 9 of the paper. Every pair of blocks halves, at 28 px too.
DISCRIMINATOR_CHANNELS = biggan.DISCRIMINATOR_CHANNELS | {2: (4, 4, 4)}


@dataclass(frozen=True, kw_only=True)
class BigGANDeepConfig(ResidualConfig):
    """`latents` stay whole; `embedding` is the length of the label's, shared by all blocks."""

    width: int = 128
    latents: int = 128
    embedding: int = 128

    channel_tables = (biggan.GENERATOR_CHANNELS, DISCRIMINATOR_CHANNELS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % BOTTLENECK:
            raise ValueError(
                f"width {self.width}: bottlenecks are a quarter of it; take a multiple of 4"
            )


def paper(resolution: int) -> dict[str, Any]:
    """The paper's settings, beside the width: 1000 classes, attention at 64 px."""
    attention = 64 if resolution > 64 else resolution // 2
    return {"resolution": resolution, "classes": 1000, "attention": attention}


class GeneratorBlock(nn.Module):
    """Four times norm, ReLU, convolution: 1×1 to a quarter, 3×3 (after enlarging), 3×3, 1×1.

    The shortcut drops the channels that are too many, and is enlarged.
    """

    def __init__(self, inputs: int, outputs: int, up: bool, norm: Callable[[int], BatchNorm]):
        super().__init__()
        hidden = inputs // BOTTLENECK
        self.outputs, self.up = outputs, up
        self.norms = nn.ModuleList([norm(inputs), norm(hidden), norm(hidden), norm(hidden)])
        self.convs = nn.ModuleList(
            [
                SNConv2d(inputs, hidden, 1),
                SNConv2d(hidden, hidden, 3, resample="up" if up else None),
                SNConv2d(hidden, hidden, 3),
                SNConv2d(hidden, outputs, 1),
            ]
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(F.relu(norm(h, condition), inplace=True))
        kept = x[:, : self.outputs]
        return h + (growth.upsample(kept) if self.up else kept)


class GeneratorPair(nn.Module):
    """The two blocks of a doubling: one that keeps the size, one that enlarges."""

    def __init__(self, inputs: int, outputs: int, norm: Callable[[int], BatchNorm]):
        super().__init__()
        self.keep = GeneratorBlock(inputs, inputs, False, norm)
        self.up = GeneratorBlock(inputs, outputs, True, norm)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.up(self.keep(x, condition), condition)


class Generator(Growing):
    """Images [n, channels, r, r] in [-1, 1] from latents [n, latents] and labels [n] (int64)."""

    def __init__(self, config: BigGANDeepConfig):
        super().__init__()
        self.rungs = config.rungs
        self.base = config.base
        widths = config.generator_widths
        self.embedding = SharedEmbedding(config.classes, config.embedding)
        conditioning = self.embedding.size + config.latents
        self.dense = SNLinear(conditioning, widths[0] * config.base * config.base)
        self.blocks = nn.ModuleDict()
        self.attention = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        norm = partial(BatchNorm, conditioning=conditioning)
        resolution = config.base
        for inputs, outputs in itertools.pairwise(widths):
            resolution *= 2
            rung = str(resolution)
            self.blocks[rung] = GeneratorPair(inputs, outputs, norm)
            if resolution == config.attention:
                self.attention[rung] = SelfAttention(outputs)
            if resolution in self.rungs:
                self.heads[rung] = GeneratorHead(outputs, config.channels)

    def forward(self, latents: Tensor, labels: Tensor, stage: Stage) -> Tensor:
        """Images at `stage.resolution`; ValueError where the ladder has no such rung."""
        self.check_stage(stage)
        condition = self.embedding(labels, latents)
        x = to_map(self.dense(condition), self.base)
        features = {}
        for rung, block in self.blocks.items():
            x = block(x, condition)
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


class DiscriminatorBlock(nn.Module):
    """Four times ReLU, convolution: 1×1 to a quarter, 3×3, 3×3, (halving) 1×1.

    The shortcut is halved, and a 1×1 convolution adds the channels that are missing.
    """

    def __init__(self, inputs: int, outputs: int, down: bool):
        super().__init__()
        hidden = outputs // BOTTLENECK
        self.down = down
        self.convs = nn.ModuleList(
            [SNConv2d(inputs, hidden, 1), SNConv2d(hidden, hidden, 3), SNConv2d(hidden, hidden, 3)]
        )
        self.last = SNConv2d(hidden, outputs, 1)
        self.missing = SNConv2d(inputs, outputs - inputs, 1) if outputs > inputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for conv in self.convs:
            h = conv(F.relu(h))
        h = F.relu(h, inplace=True)
        if self.down:
            h, x = growth.downsample(h), growth.downsample(x)
        if self.missing is not None:
            x = torch.cat([x, self.missing(x)], 1)
        return self.last(h) + x


class Discriminator(Growing):
    """One logit an image from images [n, channels, r, r] and, where there are classes, labels [n]."""

    mixes_batch = False

    def __init__(self, config: BigGANDeepConfig):
        super().__init__()
        self.rungs = config.rungs
        widths = config.discriminator_widths
        self.heads = nn.ModuleDict()
        self.descents = nn.ModuleDict()
        above: list[nn.Module] = []
        resolution = config.resolution
        for inputs, outputs in itertools.pairwise(widths):
            if resolution in self.rungs:
                self.heads[str(resolution)] = SNConv2d(config.channels, inputs, 3)
                if above:
                    self.descents[str(2 * resolution)] = nn.Sequential(*above)
                above = []
            above += [
                DiscriminatorBlock(inputs, outputs, True),
                DiscriminatorBlock(outputs, outputs, False),
            ]
            resolution //= 2
            if resolution == config.attention:
                above.append(SelfAttention(outputs))
        self.tail = nn.Sequential(*above)
        self.projection = Projection(widths[-1], config.classes)

    def forward(self, images: Tensor, labels: Tensor, stage: Stage) -> Tensor:
        """Logits [n]; ValueError where the ladder has no such rung."""
        self.check_stage(stage)
        x = growth.descend(images, self.heads, self.descents, self.rungs[0], stage)
        return self.projection(self.tail(x), labels)

    def head_of(self, rung: int) -> nn.Module:
        return self.heads[str(rung)]

    def joins_at(self, rung: int) -> Iterable[nn.Module]:
        if str(rung) in self.descents:
            yield self.descents[str(rung)]


def build(config: BigGANDeepConfig) -> tuple[Generator, Discriminator]:
    """Both networks, initialised from torch's default random generator."""
    return Generator(config), Discriminator(config)
