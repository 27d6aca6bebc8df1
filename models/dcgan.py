"""DCGAN (Radford et al. 2016): strided and transposed convolutions, batch norm in both networks.

The baseline for the other families. There are `width` feature maps at half the full resolution, and
twice as many after each halving: 8 × width at 4 px for images of 64 px. A rung's head also enlarges
or halves: the generator's draws images of r px from features at r / 2.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from typing_extensions import override

from models.families import DCGANConfig
from models.growth import GrowingDiscriminator, GrowingGenerator
from models.layers import BatchNorm, LabelledLatents, leaky_relu, pick_label
from models.shape import Stage

WEIGHT_STD = 0.02


class Up(nn.Module):
    """Transposed 4×4 convolution that doubles the size (or opens a 1×1 input), batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, opens_to: int | None = None):
        super().__init__()
        kernel, stride, padding = (opens_to, 1, 0) if opens_to else (4, 2, 1)
        self.conv = nn.ConvTranspose2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.norm = BatchNorm(outputs)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu_()


class GeneratorHead(nn.Sequential):
    """Transposed 4×4 convolution that doubles the size, to image channels, and tanh."""

    def __init__(self, inputs: int, channels: int):
        super().__init__(nn.ConvTranspose2d(inputs, channels, 4, 2, 1, bias=False), nn.Tanh())


class Generator(GrowingGenerator):
    """Images [n, channels, r, r] in [-1, 1] from latents [n, latents] and labels [n] (int64)."""

    def __init__(self, config: DCGANConfig):
        super().__init__(config.rungs)
        self.labelled = LabelledLatents(config.latents, config.classes)
        inputs = self.labelled.size
        for size in config.sizes:
            rung, outputs = str(2 * size), config.features(size)
            self.blocks[rung] = Up(inputs, outputs, config.base if size == config.base else None)
            if 2 * size in self.rungs:
                self.heads[rung] = GeneratorHead(outputs, config.channels)
            inputs = outputs
        _initialise(self)

    def forward(self, latents: Tensor, labels: Tensor, stage: Stage) -> Tensor:
        """Images at `stage.resolution`; ValueError if the ladder has no such rung."""
        x = self.labelled(latents, labels)[:, :, None, None]
        return self.ascend(x, stage)


class Down(nn.Module):
    """4×4 convolution that halves the size, batch norm, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False)
        self.norm = BatchNorm(outputs)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return leaky_relu(self.norm(self.conv(x)))


class FromImages(nn.Sequential):
    """4×4 convolution that halves the size, from image channels, and leaky ReLU."""

    def __init__(self, channels: int, outputs: int):
        super().__init__(nn.Conv2d(channels, outputs, 4, 2, 1, bias=False), nn.LeakyReLU(0.2))


class Discriminator(GrowingDiscriminator):
    """One logit an image from images [n, channels, r, r] and labels [n].

    With classes the last layer has an output for each, and the label picks its own.
    """

    mixes_batch = True

    def __init__(self, config: DCGANConfig):
        super().__init__(config.rungs)
        self.base = config.base
        after = self.stack(_steps(config))
        last = nn.Conv2d(config.features(config.base), config.classes or 1, config.base, bias=False)
        self.tail = nn.Sequential(*after, last, nn.Flatten())
        _initialise(self)

    @override
    def features(self, images: Tensor, stage: Stage) -> Tensor:
        return self.tail[:-2](self.descend(images, stage)).flatten(1)

    @override
    def judge(self, features: Tensor, labels: Tensor) -> Tensor:
        planes = features.unflatten(1, (-1, self.base, self.base))
        return pick_label(self.tail[-2:](planes), labels)


def _steps(config: DCGANConfig) -> Iterator[tuple[int, nn.Module, list[nn.Module]]]:
    """From the image down: each resolution, its head, which halves, and the block that halves again."""
    for size in reversed(config.sizes):
        features = config.features(size)
        down: list[nn.Module] = []
        if size > config.base:
            down.append(Down(features, config.features(size // 2)))
        yield 2 * size, FromImages(config.channels, features), down


@torch.no_grad()
def _initialise(network: nn.Module) -> None:
    """Weights from N(0, 0.02²), gains of norms from N(1, 0.02²) (Radford et al. 2016, §4)."""
    # not by `normal_`, for which PyTorch imports its compiler on the meta device
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.weight.copy_(torch.randn(layer.weight.shape).mul_(WEIGHT_STD))
        elif isinstance(layer, BatchNorm) and isinstance(layer.gain, nn.Parameter):
            layer.gain.copy_(torch.randn(layer.gain.shape).mul_(WEIGHT_STD).add_(1))


def build(config: DCGANConfig) -> tuple[Generator, Discriminator]:
    """Both networks, initialised from torch's default random generator."""
    return Generator(config), Discriminator(config)
