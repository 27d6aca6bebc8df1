"""The MNIST progressive GAN: ProGAN's recipe on 7→14→28 px, small enough for a CPU."""

from dataclasses import dataclass
from typing import Any

from models.progan import Discriminator, Generator, ProGANConfig


@dataclass(frozen=True, kw_only=True)
class MnistPGGANConfig(ProGANConfig):
    """Gray images of 28 px, without labels unless `classes` is given."""

    resolution: int = 28
    base: int = 7
    channels: int = 1
    width: int = 64
    latents: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base != 7 or self.resolution > 28:
            raise ValueError(
                f"resolution {self.resolution} on base {self.base}: the MNIST progressive GAN grows"
                " 7→14→28 on base 7; take progan for other ladders"
            )

    def features(self, resolution: int) -> int:
        """Number of feature maps at a resolution: halved at 28 px."""
        return self.width * min(14, resolution) // resolution


def paper(resolution: int) -> dict[str, Any]:
    """The usual settings: all three rungs."""
    return {"resolution": resolution, "first_resolution": 7}


def build(config: MnistPGGANConfig) -> tuple[Generator, Discriminator]:
    """Both networks, initialised from torch's default random generator."""
    return Generator(config), Discriminator(config)
