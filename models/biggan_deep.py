"""BigGAN-deep (Brock et al. 2019, appendix B): two bottleneck blocks a resolution, plain shortcuts.

The latents are not split: together with the label's embedding they condition every batch norm. A
shortcut drops or adds channels, but does not convolve those that it carries.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from models import growth
from models.biggan import (
    Projection,
    ResidualGenerator,
    SharedEmbedding,
    pool,
    with_spectral_norm,
)
from models.families import BOTTLENECK, BigGANDeepConfig
from models.growth import GrowingDiscriminator
from models.layers import BatchNorm, SelfAttention, SNConv2d
from models.shape import Stage


class GeneratorBlock(nn.Module):
    """Four times norm, ReLU, convolution: 1×1 to a quarter, 3×3 (after enlarging), 3×3, 1×1.

    The shortcut drops surplus channels and is enlarged. Only `up` enlarges.
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

    @override
    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(F.relu(norm(h, condition), inplace=True))
        kept = x[:, : self.outputs]
        return h + (growth.upsample(kept) if self.up else kept)


class GeneratorPair(nn.Module):
    """The two blocks of a doubling: the first keeps the size, the second enlarges."""

    def __init__(self, inputs: int, outputs: int, norm: Callable[[int], BatchNorm]):
        super().__init__()
        self.keep = GeneratorBlock(inputs, inputs, False, norm)
        self.up = GeneratorBlock(inputs, outputs, True, norm)

    @override
    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.up(self.keep(x, condition), condition)


class Generator(ResidualGenerator):
    """Images [n, channels, r, r] in [-1, 1] from latents [n, latents] and labels [n] (int64)."""

    def __init__(self, config: BigGANDeepConfig):
        embedding = SharedEmbedding(config.classes, config.embedding)
        conditioning = embedding.size + config.latents
        norm = partial(BatchNorm, conditioning=conditioning)
        super().__init__(config, conditioning, partial(GeneratorPair, norm=norm))
        self.embedding = embedding

    def forward(self, latents: Tensor, labels: Tensor, stage: Stage) -> Tensor:
        """Images at `stage.resolution`; ValueError if the ladder has no such rung."""
        condition = self.embedding(labels, latents)
        return self.ascend(self.open(condition), stage, [(condition,)] * len(self.blocks))


class DiscriminatorBlock(nn.Module):
    """Four times ReLU, convolution: 1×1 to a quarter, 3×3, 3×3, (halving) 1×1.

    The shortcut is halved, and a 1×1 convolution adds missing channels. Only `down` halves.
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

    @override
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


class Discriminator(GrowingDiscriminator):
    """One logit an image from images [n, channels, r, r] and, if there are classes, labels [n]."""

    def __init__(self, config: BigGANDeepConfig):
        super().__init__(config.rungs)
        after = self.stack(_steps(config))
        self.tail = nn.Sequential(*after)
        self.projection = Projection(config.discriminator_widths[-1], config.classes)

    @override
    def features(self, images: Tensor, stage: Stage) -> Tensor:
        return pool(self.tail(self.descend(images, stage)))

    @override
    def judge(self, features: Tensor, labels: Tensor) -> Tensor:
        return self.projection(features, labels)


def _steps(config: BigGANDeepConfig) -> Iterator[tuple[int, nn.Module, list[nn.Module]]]:
    """From the image down: each resolution, its head and its two blocks.

    The first block halves, until the smallest map is reached.
    """
    resolution = config.resolution
    for inputs, outputs in itertools.pairwise(config.discriminator_widths):
        down: list[nn.Module] = [
            DiscriminatorBlock(inputs, outputs, resolution > config.smallest_map),
            DiscriminatorBlock(outputs, outputs, False),
        ]
        if resolution // 2 == config.attention:
            down.append(SelfAttention(outputs))
        yield resolution, SNConv2d(config.channels, inputs, 3), down
        resolution //= 2


def build(config: BigGANDeepConfig) -> tuple[Generator, Discriminator]:
    """Both networks, initialised from torch's default random generator."""
    return with_spectral_norm(config, Generator(config), Discriminator(config))
