"""The first StyleGAN (Karras et al. 2019): latents are mapped to styles, which steer every layer.

The discriminator is ProGAN's, with a blur before each halving.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from models.families import StyleGANConfig
from models.growth import GrowingGenerator, Mixing
from models.layers import (
    EqualConv2d,
    EqualLinear,
    LabelledLatents,
    Reducing,
    blur,
    leaky_relu,
    pixel_norm,
)
from models.noise import normals
from models.progan import Discriminator
from models.shape import Stage

INSTANCE_NORM_EPS = 1e-8
MAPPING_RATE = 0.01


class Mapping(nn.Module):
    """Latents [n, z] to w [n, z]: a norm, then dense layers that learn at 1/100 of the rate."""

    def __init__(self, config: StyleGANConfig):
        super().__init__()
        self.labelled = LabelledLatents(config.latents, config.classes)
        sizes = [self.labelled.size] + [config.latents] * config.mapping_layers
        self.layers = nn.ModuleList(
            EqualLinear(inputs, outputs, rate=MAPPING_RATE)
            for inputs, outputs in itertools.pairwise(sizes)
        )

    @override
    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        w = pixel_norm(self.labelled(latents, labels))
        for layer in self.layers:
            w = leaky_relu(layer(w))
        return w


class StyleLayer(nn.Module):
    """Convolution, noise, bias, leaky ReLU, then AdaIN, which gives features w's statistics.

    The very first layer has no convolution. (Karras et al. 2019, §2 and figure 1.)
    """

    def __init__(self, inputs: int | None, outputs: int, latents: int, up: bool = False):
        super().__init__()
        self.up = up
        self.conv: nn.Module = nn.Identity()
        if inputs is not None:
            self.conv = EqualConv2d(inputs, outputs, 3, bias=False, resample="up" if up else None)
        self.noise_gain = nn.Parameter(torch.zeros(outputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(outputs, 1, 1))
        self.style = EqualLinear(latents, 2 * outputs, gain=1)

    @override
    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        x = self.conv(x)
        if self.up:
            x = blur(x)
        shift = self.bias.to(x.dtype)
        if noise is not None:
            shift = torch.addcmul(shift, self.noise_gain.to(x.dtype), noise.to(x.dtype))
        return adaptive_instance_norm(leaky_relu(x + shift), self.style(w))


class StyleBlock(nn.Module):
    """The two layers of a resolution. The first enlarges, except in the first block (`inputs` None)."""

    def __init__(self, inputs: int | None, outputs: int, latents: int):
        super().__init__()
        self.layer1 = StyleLayer(inputs, outputs, latents, up=inputs is not None)
        self.layer2 = StyleLayer(outputs, outputs, latents)

    def forward(self, x: Tensor, styles: Tensor, noise: Sequence[Tensor | None]) -> Tensor:
        """`styles` is [n, 2, z]; `noise` has one plane, or None, for each layer."""
        x = self.layer1(x, styles[:, 0], noise[0])
        return self.layer2(x, styles[:, 1], noise[1])


def adaptive_instance_norm(x: Tensor, style: Tensor) -> Tensor:
    """Each feature map of x [n, c, h, w] normalised, times 1 + style[:, :c], plus style[:, c:].

    (Huang & Belongie 2017, eq. 8; Karras et al. 2019, eq. 1.)
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, (2, 3), correction=0)
    gain, bias = style.to(wide.dtype).chunk(2, dim=1)
    scale = (gain + 1) * torch.rsqrt(variance + INSTANCE_NORM_EPS)
    shift = (bias - mean * scale).to(x.dtype)
    return torch.addcmul(shift[:, :, None, None], x, scale.to(x.dtype)[:, :, None, None])


class Generator(GrowingGenerator, Reducing):
    """Images [n, channels, r, r], nominally in [-1, 1], from latents [n, latents] and labels [n].

    Truncation pulls styles towards `w_average`, a running average of w.
    """

    w_average: Tensor

    def __init__(self, config: StyleGANConfig):
        super().__init__(config.rungs)
        self.resolutions = config.stack
        self.mapping = Mapping(config)
        self.register_buffer("w_average", torch.zeros(config.latents))
        self.constant = nn.Parameter(
            torch.ones(1, config.features(config.base), config.base, config.base)
        )
        inputs = None
        for resolution in config.stack:
            outputs = config.features(resolution)
            self.blocks[str(resolution)] = StyleBlock(inputs, outputs, config.latents)
            if resolution in self.rungs:
                self.heads[str(resolution)] = EqualConv2d(outputs, config.channels, 1, gain=1)
            inputs = outputs

    def forward(
        self,
        latents: Tensor,
        labels: Tensor,
        stage: Stage,
        mixing: Mixing | None = None,
        noise: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Images at `stage.resolution`, without noise if `noise` is None; ValueError off the ladder."""
        styles = self.styles(latents, labels, stage)
        if mixing is not None:
            others = self.styles(mixing.latents, labels, stage)
            layers = torch.arange(styles.shape[1], device=styles.device)
            mixed = layers >= mixing.first_layer[:, None]
            styles = torch.where(mixed[:, :, None], others, styles)
        return self.synthesise(styles, stage, noise)

    def layer_count(self, stage: Stage) -> int:
        """Layers that take a style at this stage: two for each resolution."""
        self.check_stage(stage)
        return 2 * (self.resolutions.index(stage.resolution) + 1)

    def styles(self, latents: Tensor, labels: Tensor, stage: Stage) -> Tensor:
        """w [n, layers, z], the same for each layer of the stage."""
        w = self.mapping(latents, labels)
        return w[:, None].expand(-1, self.layer_count(stage), -1)

    def truncate(
        self, styles: Tensor, psi: float | Sequence[float], cutoff: int | None = None
    ) -> Tensor:
        """Styles [n, layers, z] pulled towards the average: by `psi`, or by one psi for each layer.

        Layers from `cutoff` on stay as they are (Karras et al. 2019, appendix B). ValueError if there
        are fewer psi than layers.
        """
        count = styles.shape[1]
        psis = [psi] * count if isinstance(psi, int | float) else list(psi[:count])
        if len(psis) < count:
            raise ValueError(f"{len(psis)} psi for {count} layers; give one for each, or a single one")
        if cutoff is not None:
            psis[cutoff:] = [1.0] * len(psis[cutoff:])
        shares = styles.new_tensor(psis)[:, None]
        return torch.lerp(self.w_average.to(styles.dtype).expand_as(styles), styles, shares)

    def draw_noise(self, seeds: Sequence[int] | Tensor, stage: Stage) -> list[Tensor]:
        """One plane of normals [len(seeds), 1, r, r] a layer; an image's depend on its seed alone.

        Seeds are in [0, 2³²). The normals are the same on every device, but for rounding.
        """
        sides = [r for r in self.resolutions if r <= stage.resolution for _ in range(2)]
        places = [side * side for side in sides]
        if not isinstance(seeds, Tensor):
            seeds = torch.tensor([*seeds], dtype=torch.int64, device=self.constant.device)
        planes = normals(seeds, sum(places)).split(places, dim=1)
        return [p.reshape(-1, 1, side, side) for p, side in zip(planes, sides, strict=True)]

    def synthesise(self, styles: Tensor, stage: Stage, noise: Sequence[Tensor] | None) -> Tensor:
        """Images from styles [n, layers, z] and one plane of noise [n or 1, 1, r, r] a layer."""
        x = self.constant.to(styles.dtype)  # [1, c, base, base] up to the first style
        planes: Sequence[Tensor | None] = noise if noise is not None else [None] * styles.shape[1]
        pairs = [slice(i, i + 2) for i in range(0, styles.shape[1], 2)]
        return self.ascend(x, stage, [(styles[:, pair], planes[pair]) for pair in pairs])

    @torch.no_grad()
    def average_styles(self, latents: Tensor, labels: Tensor, share: Tensor) -> None:
        """Move `w_average` by a share, a scalar, towards the mean of w over all workers' latents."""
        w = self.mapping(latents, labels)
        total = self.reduce(torch.cat([w.sum(0), w.new_full((1,), len(w))]))
        self.w_average.lerp_(total[:-1] / total[-1], share)


def build(config: StyleGANConfig) -> tuple[Generator, Discriminator]:
    """Both networks, initialised from torch's default random generator."""
    return Generator(config), Discriminator(config, blurs=True)
