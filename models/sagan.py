"""SAGAN (Zhang et al. 2019): residual networks with self-attention, and spectral norm in both.

Unlike BigGAN's, the generator takes all latents at once, and each batch norm has its own gain and
bias for every class. The discriminator is BigGAN's.
"""

from functools import partial

from torch import Tensor

from models.biggan import (
    Discriminator,
    GeneratorBlock,
    ResidualGenerator,
    with_spectral_norm,
)
from models.families import SAGANConfig
from models.layers import BatchNorm
from models.shape import Stage


class Generator(ResidualGenerator):
    """Images [n, channels, r, r] in [-1, 1] from latents [n, latents] and labels [n] (int64)."""

    def __init__(self, config: SAGANConfig):
        norm = partial(BatchNorm, classes=config.classes)
        super().__init__(config, config.latents, partial(GeneratorBlock, norm=norm))

    def forward(self, latents: Tensor, labels: Tensor, stage: Stage) -> Tensor:
        """Images at `stage.resolution`; ValueError if the ladder has no such rung."""
        return self.ascend(self.open(latents), stage, [(labels,)] * len(self.blocks))


def build(config: SAGANConfig) -> tuple[Generator, Discriminator]:
    """Both networks, initialised from torch's default random generator."""
    return with_spectral_norm(config, Generator(config), Discriminator(config))
