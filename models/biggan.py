"""BigGAN (Brock et al. 2019): class-conditional residual networks with spectral norm in both.

Channel tables are multiples of the width. On a ladder of several rungs each rung has its own head:
norm, ReLU and 3×3 convolution in the generator, a first block that reads images in the
discriminator.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from models import growth
from models.families import BigGANConfig, ResidualConfig
from models.growth import GrowingDiscriminator, GrowingGenerator
from models.layers import (
    BatchNorm,
    SelfAttention,
    SNConv2d,
    SNEmbedding,
    SNLinear,
    use_spectral_norm,
)
from models.shape import Stage, ladder

_G = TypeVar("_G", bound=nn.Module)
_D = TypeVar("_D", bound=nn.Module)


class GeneratorBlock(nn.Module):
    """Norm, ReLU, up, conv, norm, ReLU, conv, plus an enlarged 1×1 shortcut.

    `norm(channels)` makes a batch norm, which takes the condition.
    """

    def __init__(self, inputs: int, outputs: int, norm: Callable[[int], BatchNorm]):
        super().__init__()
        self.norm1 = norm(inputs)
        self.norm2 = norm(outputs)
        self.conv1 = SNConv2d(inputs, outputs, 3, resample="up")
        self.conv2 = SNConv2d(outputs, outputs, 3)
        self.shortcut = SNConv2d(inputs, outputs, 1)

    @override
    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = F.relu(self.norm1(x, condition), inplace=True)
        h = self.conv1(h)
        h = F.relu(self.norm2(h, condition), inplace=True)
        # A 1×1 convolution and enlarging commute; this order does a quarter of the work.
        return self.conv2(h) + growth.upsample(self.shortcut(x))


class SharedEmbedding(nn.Module):
    """The label's embedding, which all blocks share, followed by the latents: [n, size + z].

    Without classes there is no embedding, and `size` is 0.
    """

    def __init__(self, classes: int | None, size: int):
        super().__init__()
        self.size = size if classes else 0
        self.table = None
        if classes:
            rows = nn.init.orthogonal_(torch.empty(classes, size))
            self.table = nn.Embedding(classes, size, _weight=rows)

    @override
    def forward(self, labels: Tensor, latents: Tensor) -> Tensor:
        if self.table is None:
            return latents
        return torch.cat([self.table(labels), latents], dim=1)


class GeneratorHead(nn.Module):
    """Norm, ReLU, 3×3 convolution to image channels, tanh."""

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.norm = BatchNorm(inputs)
        self.conv = SNConv2d(inputs, channels, 3)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(F.relu(self.norm(x), inplace=True)))


class ResidualGenerator(GrowingGenerator):
    """A dense layer to the base, the blocks of the channel table, attention, and heads.

    `block(inputs, outputs)` makes a block that doubles the size; both are numbers of feature maps.
    """

    def __init__(self, config: ResidualConfig, inputs: int, block: Callable[[int, int], nn.Module]):
        super().__init__(config.rungs)
        self.base = config.base
        widths = config.generator_widths
        self.dense = SNLinear(inputs, widths[0] * config.base * config.base)
        resolutions = ladder(2 * config.base, config.resolution)
        for resolution, (below, outputs) in zip(resolutions, itertools.pairwise(widths), strict=True):
            rung = str(resolution)
            self.blocks[rung] = block(below, outputs)
            if resolution == config.attention:
                self.attention[rung] = SelfAttention(outputs)
            if resolution in self.rungs:
                self.heads[rung] = GeneratorHead(outputs, config.channels)

    def open(self, latents: Tensor) -> Tensor:
        """Features [n, c, base, base] of the dense layer, channels last in memory."""
        return self.dense(latents).unflatten(1, (self.base, self.base, -1)).permute(0, 3, 1, 2)


class Generator(ResidualGenerator):
    """Images [n, channels, r, r] in [-1, 1] from latents [n, latents] and labels [n] (int64)."""

    def __init__(self, config: BigGANConfig):
        embedding = SharedEmbedding(config.classes, config.embedding)
        chunk = config.latents // config.chunks
        norm = partial(BatchNorm, conditioning=embedding.size + chunk)
        super().__init__(config, chunk, partial(GeneratorBlock, norm=norm))
        self.embedding = embedding
        self.chunks = [chunk] * config.chunks

    def forward(self, latents: Tensor, labels: Tensor, stage: Stage) -> Tensor:
        """Images at `stage.resolution`; ValueError if the ladder has no such rung."""
        first, *rest = latents.split(self.chunks, dim=1)
        conditions = [(self.embedding(labels, chunk),) for chunk in rest]
        return self.ascend(self.open(first), stage, conditions)


class DiscriminatorBlock(nn.Module):
    """ReLU, conv, ReLU, conv plus a shortcut, halved if `down`; no first ReLU if it reads images."""

    def __init__(self, inputs: int, outputs: int, down: bool, reads_images: bool = False):
        super().__init__()
        self.down = down
        self.reads_images = reads_images
        self.conv1 = SNConv2d(inputs, outputs, 3)
        self.conv2 = SNConv2d(outputs, outputs, 3, resample="down" if down else None)
        changes = down or inputs != outputs
        self.shortcut = SNConv2d(inputs, outputs, 1) if changes else nn.Identity()

    @override
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x if self.reads_images else F.relu(x))
        h = self.conv2(F.relu(h, inplace=True))
        if not self.down:
            return h + self.shortcut(x)
        # A 1×1 convolution and averaging commute; this order does a quarter of the work.
        return h + self.shortcut(growth.downsample(x))


class Discriminator(GrowingDiscriminator):
    """One logit an image from images [n, channels, r, r] and, if there are classes, labels [n]."""

    def __init__(self, config: ResidualConfig):
        super().__init__(config.rungs)
        widths = config.discriminator_widths
        after: list[nn.Module] = []
        for plan in _plan_discriminator(config):
            above, after = after, []
            if plan.resolution in self.rungs and str(plan.resolution) not in self.heads:
                rung = str(plan.resolution)
                self.heads[rung] = DiscriminatorBlock(
                    config.channels, plan.outputs, plan.down, reads_images=True
                )
                if plan.resolution != config.resolution:
                    block = DiscriminatorBlock(plan.inputs, plan.outputs, plan.down)
                    self.descents[str(plan.resolution * 2)] = nn.Sequential(*above, block)
            else:
                after = [*above, DiscriminatorBlock(plan.inputs, plan.outputs, plan.down)]
            if plan.down and plan.resolution // 2 == config.attention:
                after.append(SelfAttention(plan.outputs))
        self.tail = nn.Sequential(*after)
        self.projection = Projection(widths[-1], config.classes)

    @override
    def features(self, images: Tensor, stage: Stage) -> Tensor:
        return pool(self.tail(self.descend(images, stage)))

    @override
    def judge(self, features: Tensor, labels: Tensor) -> Tensor:
        return self.projection(features, labels)


def pool(x: Tensor) -> Tensor:
    """ReLU, then the sum over places: [n, c, h, w] to [n, c]."""
    return F.relu(x).sum((2, 3))


class Projection(nn.Module):
    """Pooled features to a logit: linear, plus their dot product with the label's embedding.

    (Miyato & Koyama 2018, §3.)
    """

    def __init__(self, features: int, classes: int | None):
        super().__init__()
        self.linear = SNLinear(features, 1)
        self.embedding = SNEmbedding(classes, features) if classes else None

    @override
    def forward(self, pooled: Tensor, labels: Tensor) -> Tensor:
        logits = self.linear(pooled).squeeze(1)
        if self.embedding is None:
            return logits
        return logits + (pooled * self.embedding(labels)).sum(1)


def with_spectral_norm(config: ResidualConfig, generator: _G, discriminator: _D) -> tuple[_G, _D]:
    """Both networks, with or without spectral norm as configured."""
    for network in (generator, discriminator):
        use_spectral_norm(network, config.spectral_norm)
    return generator, discriminator


@dataclass(frozen=True)
class _BlockPlan:
    resolution: int  # of its input
    inputs: int
    outputs: int
    down: bool


def _plan_discriminator(config: ResidualConfig) -> list[_BlockPlan]:
    """The blocks from the image down."""
    resolution = config.resolution
    widths = config.discriminator_widths
    plans = []
    for inputs, outputs in zip([0, *widths], widths, strict=False):
        down = resolution > config.smallest_map
        plans.append(_BlockPlan(resolution, inputs, outputs, down))
        resolution //= 2 if down else 1
    return plans


def build(config: BigGANConfig) -> tuple[Generator, Discriminator]:
    """Both networks, initialised from torch's default random generator."""
    return with_spectral_norm(config, Generator(config), Discriminator(config))
