"""BigGAN (Brock et al. 2019): class-conditional residual networks with spectral norm in both.

Channel tables are multiples of the width. A ladder that starts below the full resolution gives each
rung a head of its own: norm, ReLU and 3×3 convolution for the generator, a first block that reads
the image for the discriminator.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import growth
from models.growth import Growing, Stage
from models.layers import BatchNorm, SelfAttention, SNConv2d, SNEmbedding, SNLinear

GENERATOR_CHANNELS = {
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
    512: (16, 16, 8, 8, 4, 2, 1, 1),
}
DISCRIMINATOR_CHANNELS = {
    32: (4, 4, 4, 4),
    64: (1, 2, 4, 8, 16),
    128: (1, 2, 4, 8, 16, 16),
    256: (1, 2, 4, 8, 8, 16, 16),
    512: (1, 1, 2, 4, 8, 8, 16, 16),
}
BASE = 4


@dataclass(frozen=True)
class BigGANConfig:
    """What shapes the two networks: pixels, counts of features, and the rung where attention sits."""

    resolution: int
    first_resolution: int
    channels: int
    classes: int
    width: int
    latents: int
    embedding: int
    attention: int | None

    def __post_init__(self) -> None:
        if self.resolution not in GENERATOR_CHANNELS:
            raise ValueError(
                f"resolution {self.resolution} has no BigGAN; choose of {[*GENERATOR_CHANNELS]}"
            )
        if self.first_resolution <= BASE:
            raise ValueError(
                f"first resolution {self.first_resolution}: BigGAN draws from {2 * BASE} px up"
            )
        if self.classes < 1:
            raise ValueError(f"classes is {self.classes}: BigGAN is class-conditional, give 1 or more")
        growth.ladder(self.first_resolution, self.resolution)
        if self.latents % self.chunks:
            raise ValueError(
                f"latents {self.latents} do not split into the {self.chunks} equal chunks of skip-z"
                f" at {self.resolution} px; take a multiple of {self.chunks}"
            )
        places = self.attention_places
        if self.attention is not None and self.attention not in places:
            raise ValueError(
                f"attention {self.attention}: no block works there in both networks;"
                f" choose of {list(places)}, or null for none"
            )

        if self.attention is not None and self.width * min(GENERATOR_CHANNELS[self.resolution]) < 8:
            raise ValueError(
                f"width {self.width}: attention splits its channels by 8; take a greater width,"
                " or attention null"
            )

    @property
    def chunks(self) -> int:
        """Parts of the latents: one for the dense layer, one for each block."""
        return len(GENERATOR_CHANNELS[self.resolution])

    @property
    def attention_places(self) -> tuple[int, ...]:
        """Resolutions that a block of the generator and one of the discriminator put out."""
        return tuple(r for r in growth.ladder(2 * BASE, self.resolution) if r < self.resolution)


class GeneratorBlock(nn.Module):
    """Norm, ReLU, up, conv, norm, ReLU, conv, beside an enlarged 1×1 shortcut."""

    def __init__(self, inputs: int, outputs: int, conditioning: int):
        super().__init__()
        self.norm1 = BatchNorm(inputs, conditioning)
        self.norm2 = BatchNorm(outputs, conditioning)
        self.conv1 = SNConv2d(inputs, outputs, 3, resample="up")
        self.conv2 = SNConv2d(outputs, outputs, 3)
        self.shortcut = SNConv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = F.relu(self.norm1(x, condition), inplace=True)
        h = self.conv1(h)
        h = F.relu(self.norm2(h, condition), inplace=True)
        # A 1×1 convolution and enlarging commute; this order does a quarter of the work.
        return self.conv2(h) + growth.upsample(self.shortcut(x))


class GeneratorHead(nn.Module):
    """Norm, ReLU, 3×3 convolution to image channels, tanh."""

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.norm = BatchNorm(inputs)
        self.conv = SNConv2d(inputs, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(F.relu(self.norm(x), inplace=True)))


class Generator(Growing):
    """Images [n, channels, r, r] in [-1, 1] from latents [n, latents] and labels [n] (int64)."""

    def __init__(self, config: BigGANConfig):
        super().__init__()
        self.rungs = growth.ladder(config.first_resolution, config.resolution)
        self.chunk = config.latents // config.chunks
        widths = [config.width * factor for factor in GENERATOR_CHANNELS[config.resolution]]
        self.embedding = nn.Embedding(config.classes, config.embedding)
        nn.init.orthogonal_(self.embedding.weight)
        self.dense = SNLinear(self.chunk, widths[0] * BASE * BASE)
        self.blocks = nn.ModuleDict()
        self.attention = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        resolution = BASE
        for inputs, outputs in itertools.pairwise(widths):
            resolution *= 2
            rung = str(resolution)
            self.blocks[rung] = GeneratorBlock(inputs, outputs, config.embedding + self.chunk)
            if resolution == config.attention:
                self.attention[rung] = SelfAttention(outputs)
            if resolution in self.rungs:
                self.heads[rung] = GeneratorHead(outputs, config.channels)

    def forward(self, latents: Tensor, labels: Tensor, stage: Stage) -> Tensor:
        """Images at `stage.resolution`; ValueError where the ladder has no such rung."""
        self.check_stage(stage)
        chunks = latents.split(self.chunk, dim=1)
        embedded = self.embedding(labels)
        x = self.dense(chunks[0]).unflatten(1, (BASE, BASE, -1)).permute(0, 3, 1, 2)
        features = {}
        for chunk, (rung, block) in zip(chunks[1:], self.blocks.items(), strict=True):
            x = block(x, torch.cat([embedded, chunk], dim=1))
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
    """ReLU, conv, ReLU, conv, halved or not, beside a shortcut; the first of a rung reads images."""

    def __init__(self, inputs: int, outputs: int, down: bool, reads_images: bool = False):
        super().__init__()
        self.down = down
        self.reads_images = reads_images
        self.conv1 = SNConv2d(inputs, outputs, 3)
        self.conv2 = SNConv2d(outputs, outputs, 3, resample="down" if down else None)
        changes = down or inputs != outputs
        self.shortcut = SNConv2d(inputs, outputs, 1) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x if self.reads_images else F.relu(x))
        h = self.conv2(F.relu(h, inplace=True))
        if not self.down:
            return h + self.shortcut(x)
        # A 1×1 convolution and averaging commute; this order does a quarter of the work.
        return h + self.shortcut(growth.downsample(x))


class Discriminator(Growing):
    """One logit an image from images [n, channels, r, r] and labels [n], by projection."""

    mixes_batch = False

    def __init__(self, config: BigGANConfig):
        super().__init__()
        self.rungs = growth.ladder(config.first_resolution, config.resolution)
        widths = [config.width * factor for factor in DISCRIMINATOR_CHANNELS[config.resolution]]
        blocks = _plan_discriminator(config.resolution, widths)
        self.heads = nn.ModuleDict()
        self.descents = nn.ModuleDict()
        after: list[nn.Module] = []
        for plan in blocks:
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
        self.linear = SNLinear(widths[-1], 1)
        self.embedding = SNEmbedding(config.classes, widths[-1])

    def forward(self, images: Tensor, labels: Tensor, stage: Stage) -> Tensor:
        """Logits [n]; ValueError where the ladder has no such rung."""
        self.check_stage(stage)
        x = growth.descend(images, self.heads, self.descents, self.rungs[0], stage)
        pooled = F.relu(self.tail(x)).sum((2, 3))
        logits = self.linear(pooled).squeeze(1)
        return logits + (pooled * self.embedding(labels)).sum(1)

    def head_of(self, rung: int) -> nn.Module:
        return self.heads[str(rung)]

    def joins_at(self, rung: int) -> Iterable[nn.Module]:
        if str(rung) in self.descents:
            yield self.descents[str(rung)]


@dataclass(frozen=True)
class _BlockPlan:
    resolution: int  # of its input
    inputs: int
    outputs: int
    down: bool


def _plan_discriminator(resolution: int, widths: list[int]) -> list[_BlockPlan]:
    """The blocks from the image down: the last halves no more, at 32 px the last two (at 8 px)."""
    lowest = 8 if resolution == 32 else 4
    plans = []
    for inputs, outputs in zip([0, *widths], widths, strict=False):
        down = resolution > lowest
        plans.append(_BlockPlan(resolution, inputs, outputs, down))
        resolution //= 2 if down else 1
    return plans


def build(config: BigGANConfig) -> tuple[Generator, Discriminator]:
    """Both networks, initialised from torch's default random generator."""
    return Generator(config), Discriminator(config)
