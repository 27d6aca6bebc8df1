"""How a network grows: stages, the ladder of resolutions, and the fade between two rungs.

The one place that knows which rungs are active and how two of them blend (Karras et al. 2018, §2).
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Stage:
    """Where on the ladder a network stands.

    `resolution` is in pixels. `alpha` in [0, 1] is the share of this rung's own output; the rest
    comes from the rung below, enlarged. At alpha 1 the rung stands alone.
    """

    resolution: int
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha is {self.alpha}, but lies in [0, 1]")

    @property
    def fading(self) -> bool:
        """Whether the rung below still has a share in the output."""
        return self.alpha < 1.0


def ladder(first: int, last: int) -> tuple[int, ...]:
    """The rungs from `first` to `last`, each twice the one before; ValueError if none such exist."""
    rungs = [first]
    while 0 < rungs[-1] < last:
        rungs.append(rungs[-1] * 2)
    if first < 1 or rungs[-1] != last:
        raise ValueError(f"no ladder of doublings leads from {first} to {last} pixels")
    return tuple(rungs)


BASES = (4, 7)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What shapes the networks of every family, checked when it is made; families add their own.

    The ladder leads from `first_resolution` to `resolution`, and without the former has one rung.
    Resolutions are `base`·2ᵏ pixels, images have 1 or 3 `channels`, `classes` is None where there
    are no labels. ValueError says which setting does not fit, and what would.
    """

    resolution: int
    first_resolution: int | None = None
    channels: int = 3
    classes: int | None = None
    base: int = 4
    width: int
    latents: int

    lowest_doublings: ClassVar[int] = 0
    """The lowest rung is this many doublings above the base."""
    batch_group: ClassVar[int] = 1
    """The discriminator takes batches that are multiples of this."""

    def __post_init__(self) -> None:
        if self.base not in BASES:
            raise ValueError(f"base {self.base}: networks start at 4 or 7 px")
        if self.channels not in (1, 3):
            raise ValueError(f"channels {self.channels}: 1 for gray images, 3 for RGB")
        for name in ("classes", "width", "latents"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: give 1 or more")
        lowest = self.base * 2**self.lowest_doublings
        if self.rungs[0] < lowest or self.base not in ladder_down(self.rungs[0]):
            name = "resolution" if self.first_resolution is None else "first resolution"
            raise ValueError(
                f"{name} {self.rungs[0]}: on base {self.base} the rungs are"
                f" {lowest}, {2 * lowest}, {4 * lowest}, …"
            )

    @cached_property
    def rungs(self) -> tuple[int, ...]:
        """Resolutions of the ladder, lowest first."""
        first = self.resolution if self.first_resolution is None else self.first_resolution
        return ladder(first, self.resolution)

    @property
    def doublings(self) -> int:
        """From the base to the full resolution."""
        return (self.resolution // self.base).bit_length() - 1


def ladder_down(resolution: int) -> list[int]:
    """The resolution, and its halves for as long as they are whole."""
    halves = [resolution]
    while halves[-1] % 2 == 0:
        halves.append(halves[-1] // 2)
    return halves


def upsample(images: Tensor) -> Tensor:
    """Twice as large, by nearest neighbour."""
    return F.interpolate(images, scale_factor=2, mode="nearest")


def downsample(images: Tensor) -> Tensor:
    """Half as large, by the average of each 2×2 pixels."""
    return F.avg_pool2d(images, 2)


def blend(below: Tensor, current: Tensor, alpha: float) -> Tensor:
    """(1 − alpha)·below + alpha·current; exactly `below` at alpha 0."""
    return torch.lerp(below, current, alpha)


def fade_images(images: Tensor, stage: Stage) -> Tensor:
    """Real images [n, c, h, w] as detailed as the fading generator's (Karras et al. 2018, §A.1)."""
    if not stage.fading:
        return images
    return blend(upsample(downsample(images)), images, stage.alpha)


class Growing(nn.Module):
    """A network on a ladder: knows its rungs, and freezes what a stage does not use.

    `heads` maps a rung to what reads or draws images there, and is used at no other; `joins_at` names
    what joins at a rung and stays. All else is always active.
    """

    def __init__(self, rungs: tuple[int, ...]):
        super().__init__()
        self.rungs = rungs
        self.heads = nn.ModuleDict()

    def joins_at(self, rung: int) -> Iterable[nn.Module]:
        """What is used at this rung and at all above it, but at none below."""
        raise NotImplementedError

    def check_stage(self, stage: Stage) -> None:
        """Raise ValueError where the network has no such stage."""
        if stage.resolution not in self.rungs:
            raise ValueError(f"no rung of {stage.resolution} px; the rungs are {self.rungs}")
        if stage.fading and stage.resolution == self.rungs[0]:
            raise ValueError(f"the lowest rung, {self.rungs[0]} px, has none below to fade from")

    def activate(self, stage: Stage) -> list[nn.Parameter]:
        """Make exactly the parameters that the stage uses require gradients, and return them."""
        self.check_stage(stage)
        idle = {id(p) for p in self._idle_parameters(stage)}
        active = []
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) not in idle)
            if parameter.requires_grad:
                active.append(parameter)
            else:
                parameter.grad = None
        return active

    def _idle_parameters(self, stage: Stage) -> Iterable[nn.Parameter]:
        heads = {stage.resolution} | ({stage.resolution // 2} if stage.fading else set())
        for rung in self.rungs:
            if rung not in heads:
                yield from self.heads[str(rung)].parameters()
            if rung > stage.resolution:
                for module in self.joins_at(rung):
                    yield from module.parameters()


class GrowingGenerator(Growing):
    """Blocks from the base up, each leading to a resolution, where a head may draw.

    `blocks` and `attention`, which follows a block, are keyed by the rung that their features are
    drawn at. A family fills them in.
    """

    def __init__(self, rungs: tuple[int, ...]):
        super().__init__(rungs)
        self.blocks = nn.ModuleDict()
        self.attention = nn.ModuleDict()

    def ascend(
        self, x: Tensor, stage: Stage, conditions: Iterable[Sequence[Any]] = itertools.repeat(())
    ) -> Tensor:
        """Images of the stage; a block takes its features and what `conditions` has for it."""
        self.check_stage(stage)
        features = {}
        for (rung, block), condition in zip(self.blocks.items(), conditions, strict=False):
            x = block(x, *condition)
            if rung in self.attention:
                x = self.attention[rung](x)
            features[int(rung)] = x
            if int(rung) == stage.resolution:
                break
        images = self.heads[str(stage.resolution)](x)
        if not stage.fading:
            return images
        below = stage.resolution // 2
        return blend(upsample(self.heads[str(below)](features[below])), images, stage.alpha)

    def joins_at(self, rung: int) -> Iterable[nn.Module]:
        yield self.blocks[str(rung)]
        if str(rung) in self.attention:
            yield self.attention[str(rung)]


class GrowingDiscriminator(Growing):
    """The way down, mirrored: heads that read images, `descents` from rung to rung, then a tail.

    `descents[r]` goes from the features that `heads[r]` yields to those that `heads[r / 2]` yields.
    `mixes_batch` says that a logit depends on other images of the batch. A family says what its last
    layer sees (`features`) and makes of it (`judge`).
    """

    mixes_batch = False

    def __init__(self, rungs: tuple[int, ...]):
        super().__init__(rungs)
        self.descents = nn.ModuleDict()

    def forward(self, images: Tensor, labels: Tensor, stage: Stage) -> Tensor:
        """Logits [n] of images [n, channels, r, r] and, where there are classes, labels [n].

        ValueError where the ladder has no such rung.
        """
        return self.judge(self.features(images, stage), labels)

    def features(self, images: Tensor, stage: Stage) -> Tensor:
        """What the last layer sees of each image: [n, f]."""
        raise NotImplementedError

    def judge(self, features: Tensor, labels: Tensor) -> Tensor:
        """Logits [n] from features [n, f]."""
        raise NotImplementedError

    def stack(self, steps: Iterable[tuple[int, nn.Module, Sequence[nn.Module]]]) -> list[nn.Module]:
        """Fill in from the image down: resolution, its head, and what leads from there to the next.

        Heads off the ladder are left out. Returns what follows the lowest rung.
        """
        above: list[nn.Module] = []
        for resolution, head, down in steps:
            if resolution in self.rungs:
                self.heads[str(resolution)] = head
                if above:
                    self.descents[str(2 * resolution)] = nn.Sequential(*above)
                above = []
            above += down
        return above

    def descend(self, images: Tensor, stage: Stage) -> Tensor:
        """Features at the lowest rung, from images at the stage's."""
        self.check_stage(stage)
        rung = stage.resolution
        features = self.heads[str(rung)](images)
        while rung > self.rungs[0]:
            features = self.descents[str(rung)](features)
            rung //= 2
            if stage.fading and rung == stage.resolution // 2:
                below = self.heads[str(rung)](downsample(images))
                features = blend(below, features, stage.alpha)
        return features

    def joins_at(self, rung: int) -> Iterable[nn.Module]:
        if str(rung) in self.descents:
            yield self.descents[str(rung)]
