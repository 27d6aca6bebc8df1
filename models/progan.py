"""ProGAN (Karras et al. 2018): plain stacks that grow, equalized learning rate, no learnt norm.

The number of feature maps depends on the resolution alone, not on the ladder: `width` up to 8 times
the base (32 px), then halved at each doubling.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from typing_extensions import override

from models.families import STDDEV_GROUP, ProGANConfig
from models.growth import GrowingDiscriminator, GrowingGenerator
from models.layers import (
    EqualConv2d,
    EqualLinear,
    LabelledLatents,
    MinibatchStddev,
    blur,
    leaky_relu,
    pick_label,
    pixel_norm,
)
from models.shape import Stage


class GeneratorBase(nn.Module):
    """Dense to the base resolution, then one convolution."""

    def __init__(self, inputs: int, outputs: int, base: int):
        super().__init__()
        self.base = base
        # √2 / 4 for 4 px: the gain in the authors' code, which allows for its reshape to 4×4 places
        self.dense = EqualLinear(inputs, outputs * base * base, gain=math.sqrt(2) / 4, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs, 1, 1))
        self.conv = EqualConv2d(outputs, outputs, 3)

    @override
    def forward(self, latents: Tensor) -> Tensor:
        x = self.dense(latents).unflatten(1, (-1, self.base, self.base)) + self.bias
        x = pixel_norm(leaky_relu(x))
        return pixel_norm(leaky_relu(self.conv(x)))


class GeneratorBlock(nn.Module):
    """Enlarge, then twice: convolution, leaky ReLU, pixel norm."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = EqualConv2d(inputs, outputs, 3, resample="up")
        self.conv2 = EqualConv2d(outputs, outputs, 3)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = pixel_norm(leaky_relu(self.conv1(x)))
        return pixel_norm(leaky_relu(self.conv2(x)))


class Generator(GrowingGenerator):
    """Images [n, channels, r, r], nominally in [-1, 1], from latents [n, latents] and labels [n]."""

    def __init__(self, config: ProGANConfig):
        super().__init__(config.rungs)
        self.labelled = LabelledLatents(config.latents, config.classes)
        inputs = self.labelled.size
        for resolution in config.stack:
            rung, outputs = str(resolution), config.features(resolution)
            if resolution == config.base:
                self.blocks[rung] = GeneratorBase(inputs, outputs, config.base)
            else:
                self.blocks[rung] = GeneratorBlock(inputs, outputs)
            if resolution in self.rungs:
                self.heads[rung] = EqualConv2d(outputs, config.channels, 1, gain=1)
            inputs = outputs

    def forward(self, latents: Tensor, labels: Tensor, stage: Stage) -> Tensor:
        """Images at `stage.resolution`; ValueError if the ladder has no such rung."""
        x = pixel_norm(self.labelled(latents, labels))
        return self.ascend(x, stage)


class FromImages(nn.Sequential):
    """1×1 convolution from image channels and leaky ReLU."""

    def __init__(self, channels: int, outputs: int):
        super().__init__(EqualConv2d(channels, outputs, 1), nn.LeakyReLU(0.2))


class DiscriminatorBlock(nn.Module):
    """Two convolutions with leaky ReLU. The second halves; in StyleGAN a blur comes before it."""

    def __init__(self, inputs: int, outputs: int, blurs: bool):
        super().__init__()
        self.blurs = blurs
        self.conv1 = EqualConv2d(inputs, inputs, 3)
        self.conv2 = EqualConv2d(inputs, outputs, 3, resample="down")

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = leaky_relu(self.conv1(x))
        return leaky_relu(self.conv2(blur(x) if self.blurs else x))


class DiscriminatorBase(nn.Module):
    """Minibatch stddev, convolution, a dense layer; `judge` applies `dense2`, one logit a class."""

    def __init__(self, features: int, base: int, classes: int | None):
        super().__init__()
        self.stddev = MinibatchStddev(STDDEV_GROUP)
        self.conv = EqualConv2d(features + 1, features, 3)
        self.dense1 = EqualLinear(features * base * base, features)
        self.dense2 = EqualLinear(features, classes or 1, gain=1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = leaky_relu(self.conv(self.stddev(x)))
        return leaky_relu(self.dense1(x.flatten(1)))


class Discriminator(GrowingDiscriminator):
    """One logit an image from images [n, channels, r, r] and labels [n].

    With classes the last layer has an output for each, and the label picks its own.
    """

    mixes_batch = True

    def __init__(self, config: ProGANConfig, blurs: bool = False):
        super().__init__(config.rungs)
        after = self.stack(_steps(config, blurs))
        base = DiscriminatorBase(config.features(config.base), config.base, config.classes)
        self.tail = nn.Sequential(*after, base)

    @override
    def features(self, images: Tensor, stage: Stage) -> Tensor:
        return self.tail(self.descend(images, stage))

    @override
    def judge(self, features: Tensor, labels: Tensor) -> Tensor:
        return pick_label(self.tail[-1].dense2(features), labels)  # type: ignore[operator]


def _steps(config: ProGANConfig, blurs: bool) -> Iterator[tuple[int, nn.Module, list[nn.Module]]]:
    """From the image down: each resolution, its head, and, above the base, the block that halves it."""
    for resolution in reversed(config.stack):
        features = config.features(resolution)
        down: list[nn.Module] = []
        if resolution > config.base:
            down.append(DiscriminatorBlock(features, config.features(resolution // 2), blurs))
        yield resolution, FromImages(config.channels, features), down


def build(config: ProGANConfig) -> tuple[Generator, Discriminator]:
    """Both networks, initialised from torch's default random generator."""
    return Generator(config), Discriminator(config)
