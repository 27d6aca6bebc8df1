"""Every family's configuration, which checks itself, and the settings of its paper. Imports no torch."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from models.shape import Shape, ladder

if TYPE_CHECKING:
    from models.growth import GrowingDiscriminator, GrowingGenerator


# DCGAN ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DCGANConfig(Shape):
    """`width` is the number of feature maps at half the full resolution, 128 in the paper's figure."""

    width: int = 64
    latents: int = 100

    lowest_doublings: ClassVar[int] = 1
    has_batch_norm: ClassVar[bool] = True

    def features(self, size: int) -> int:
        """Number of feature maps at a size in pixels."""
        return self.width * self.resolution // (2 * size)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the features, from the base up."""
        return ladder(self.base, self.resolution // 2)


def _dcgan_paper(resolution: int) -> dict[str, Any]:
    """The usual settings except the width: one rung."""
    return {"resolution": resolution}


# SAGAN, BigGAN, BigGAN-deep ------------------------------------------------------------------------

# Keyed by doublings of the base: 3 make 32 px, or 56 px on base 7; 5 make 128 px.
GENERATOR_CHANNELS = {
    2: (4, 4, 4),
    3: (4, 4, 4, 4),
    4: (16, 16, 8, 4, 2),
    5: (16, 16, 8, 4, 2, 1),
    6: (16, 16, 8, 8, 4, 2, 1),
    7: (16, 16, 8, 8, 4, 2, 1, 1),
}
DISCRIMINATOR_CHANNELS = {
    2: (4, 4, 4, 4),
    3: (4, 4, 4, 4),
    4: (1, 2, 4, 8, 16),
    5: (1, 2, 4, 8, 16, 16),
    6: (1, 2, 4, 8, 8, 16, 16),
    7: (1, 1, 2, 4, 8, 8, 16, 16),
}
CHUNK = 20


@dataclass(frozen=True, kw_only=True)
class ResidualConfig(Shape):
    """The settings that SAGAN, BigGAN and BigGAN-deep share.

    `attention` is the resolution of self-attention, if any; `spectral_norm` False leaves weights as
    they are.
    """

    attention: int | None = None
    spectral_norm: bool = True

    lowest_doublings: ClassVar[int] = 1
    has_batch_norm: ClassVar[bool] = True
    channel_tables: ClassVar[tuple[dict[int, tuple[int, ...]], dict[int, tuple[int, ...]]]] = (
        GENERATOR_CHANNELS,
        DISCRIMINATOR_CHANNELS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.doublings not in self.channel_tables[0]:
            sizes = [self.base << doublings for doublings in self.channel_tables[0]]
            raise ValueError(f"resolution {self.resolution}: on base {self.base} choose one of {sizes}")
        places = self.attention_places
        if self.attention is not None and self.attention not in places:
            raise ValueError(
                f"attention {self.attention}: the networks do not both have a block there;"
                f" choose one of {list(places)}, or null for none"
            )
        if self.attention is not None and self.width * min(self.channel_tables[0][self.doublings]) < 8:
            raise ValueError(
                f"width {self.width}: attention divides its channels by 8; give a larger width,"
                " or attention null"
            )

    @property
    def attention_places(self) -> tuple[int, ...]:
        """Resolutions at which both a generator block and a discriminator block put out features."""
        return tuple(r for r in ladder(2 * self.base, self.resolution) if r < self.resolution)

    @property
    def generator_widths(self) -> list[int]:
        """Feature maps at the base, then after each doubling."""
        return [self.width * factor for factor in self.channel_tables[0][self.doublings]]

    @property
    def smallest_map(self) -> int:
        """Side to which the discriminator halves: the base, but from 32 px only twice, to 8."""
        return 2 * self.base if self.doublings == 3 else self.base

    @property
    def discriminator_widths(self) -> list[int]:
        """Feature maps along the discriminator, from the image down."""
        return [self.width * factor for factor in self.channel_tables[1][self.doublings]]


def paper_attention(resolution: int) -> int | None:
    """The published place: 64 px, but 128 px in networks of 256 px (Brock et al. 2019, app. B)."""
    return {32: 16, 64: 32, 128: 64, 256: 128, 512: 64}.get(resolution)


@dataclass(frozen=True, kw_only=True)
class BigGANConfig(ResidualConfig):
    """`latents` are split among the dense layer and the blocks (skip-z), which share an `embedding`."""

    width: int = 96
    latents: int
    embedding: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latents % self.chunks:
            raise ValueError(
                f"latents {self.latents}: skip-z at {self.resolution} px splits them into"
                f" {self.chunks} equal chunks; give a multiple of {self.chunks}"
            )

    @property
    def chunks(self) -> int:
        """Parts of the latents: one for the dense layer, one for each block."""
        return len(self.generator_widths)


def _biggan_paper(resolution: int) -> dict[str, Any]:
    """The paper's settings except the width: chunks of 20 latents, 1000 classes."""
    doublings = (resolution // 4).bit_length() - 1
    chunks = len(GENERATOR_CHANNELS.get(doublings, (1,)))
    return {
        "resolution": resolution,
        "classes": 1000,
        "latents": CHUNK * chunks,
        "attention": paper_attention(resolution),
    }


@dataclass(frozen=True, kw_only=True)
class SAGANConfig(ResidualConfig):
    """`latents` may have any length."""

    width: int = 64
    latents: int = 128


def _sagan_paper(resolution: int) -> dict[str, Any]:
    """The usual settings except the width: 1000 classes."""
    return {"resolution": resolution, "classes": 1000, "attention": paper_attention(resolution)}


BOTTLENECK = 4
# Tables 7 to 9 of the paper. A table has one more entry than there are pairs of blocks.
DEEP_DISCRIMINATOR_CHANNELS = DISCRIMINATOR_CHANNELS | {2: (4, 4, 4)}


@dataclass(frozen=True, kw_only=True)
class BigGANDeepConfig(ResidualConfig):
    """`latents` stay whole; `embedding` is the length of the label's embedding, which blocks share."""

    width: int = 128
    latents: int = 128
    embedding: int = 128

    channel_tables = (GENERATOR_CHANNELS, DEEP_DISCRIMINATOR_CHANNELS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % BOTTLENECK:
            raise ValueError(
                f"width {self.width}: bottlenecks have a quarter of it; give a multiple of 4"
            )


def _biggan_deep_paper(resolution: int) -> dict[str, Any]:
    """The paper's settings except the width: 1000 classes, attention at 64 px."""
    attention = 64 if resolution > 64 else resolution // 2
    return {"resolution": resolution, "classes": 1000, "attention": attention}


# ProGAN, StyleGAN, the MNIST progressive GAN -------------------------------------------------------

MOST_DOUBLINGS = 8
STDDEV_GROUP = 4


@dataclass(frozen=True, kw_only=True)
class ProGANConfig(Shape):
    """`width` is the number of feature maps at the lower rungs (Karras et al. 2018, table 2: 512)."""

    width: int = 512
    latents: int = 512

    batch_group: ClassVar[int] = STDDEV_GROUP
    normalises_latents: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.doublings > MOST_DOUBLINGS:
            largest = self.base << MOST_DOUBLINGS
            raise ValueError(
                f"resolution {self.resolution}: the tables end at {largest} px on base {self.base}"
            )
        if self.features(self.resolution) < 1:
            raise ValueError(
                f"width {self.width}: leaves no feature map at {self.resolution} px; give a larger one"
            )

    def features(self, resolution: int) -> int:
        """Number of feature maps at a resolution."""
        return self.width * min(8 * self.base, resolution) // resolution

    @property
    def stack(self) -> tuple[int, ...]:
        """All resolutions from the base up, including those that are no rungs of the ladder."""
        return ladder(self.base, self.resolution)


def _progan_paper(resolution: int) -> dict[str, Any]:
    """The paper's settings except the width: all rungs from 4 px up."""
    return {"resolution": resolution, "first_resolution": 4}


MOST_MAPPING_LAYERS = 64


@dataclass(frozen=True, kw_only=True)
class StyleGANConfig(ProGANConfig):
    """ProGAN's settings and the mapping's depth; z and w both have the length `latents`."""

    mapping_layers: int = 8

    has_styles: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.mapping_layers <= MOST_MAPPING_LAYERS:
            raise ValueError(f"mapping_layers is {self.mapping_layers}: give 1 to {MOST_MAPPING_LAYERS}")


def _stylegan_paper(resolution: int) -> dict[str, Any]:
    """The paper's settings except the width. It trains from 8 px up, with heads from 4 px up."""
    return {"resolution": resolution, "first_resolution": 4}


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


def _mnist_pggan_paper(resolution: int) -> dict[str, Any]:
    """The usual settings: all three rungs."""
    return {"resolution": resolution, "first_resolution": 7}


# All of them ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """A configuration class, the module of `models` that builds its networks, its paper's settings."""

    config: type[Shape]
    module: str
    paper: Callable[[int], dict[str, Any]]

    def build(self, config: Shape) -> "tuple[GrowingGenerator, GrowingDiscriminator]":
        """Both networks; imports torch."""
        return importlib.import_module(f"models.{self.module}").build(config)


FAMILIES: dict[str, Family] = {
    "dcgan": Family(DCGANConfig, "dcgan", _dcgan_paper),
    "sagan": Family(SAGANConfig, "sagan", _sagan_paper),
    "biggan": Family(BigGANConfig, "biggan", _biggan_paper),
    "biggan-deep": Family(BigGANDeepConfig, "biggan_deep", _biggan_deep_paper),
    "progan": Family(ProGANConfig, "progan", _progan_paper),
    "stylegan": Family(StyleGANConfig, "stylegan", _stylegan_paper),
    "mnist-pggan": Family(MnistPGGANConfig, "mnist_pggan", _mnist_pggan_paper),
}
