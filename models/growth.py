"""How a network grows: stages, the ladder of resolutions, and the fade between two rungs.

Only this module knows which rungs are active and how two rungs blend (Karras et al. 2018, §2).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from models.precision import without_autocast
from models.shape import Stage


def upsample(images: Tensor) -> Tensor:
    """Images at twice the size, by nearest neighbour; copying pixels changes no dtype."""
    # autocast on CUDA would make them fp32, and all that is added to them
    with without_autocast(images):
        return F.interpolate(images, scale_factor=2, mode="nearest")


def downsample(images: Tensor) -> Tensor:
    """Images at half the size: the average of each 2×2 pixels."""
    return F.avg_pool2d(images, 2)


def blend(below: Tensor, current: Tensor, alpha: float | Tensor) -> Tensor:
    """(1 − alpha)·below + alpha·current; exactly `below` at alpha 0."""
    if isinstance(alpha, Tensor):
        return torch.lerp(below, current, alpha.to(below.dtype))
    return torch.lerp(below, current, alpha)


class LiveStage(Stage):
    """A stage in a fade whose alpha is a scalar tensor: it changes on the device, and is not read."""

    def __init__(self, resolution: int, alpha: Tensor):
        # as the frozen class does it, but for the check of alpha, for which the host would wait
        object.__setattr__(self, "resolution", resolution)
        object.__setattr__(self, "alpha", alpha)

    @property
    @override
    def fading(self) -> bool:
        return True


def fade_images(images: Tensor, stage: Stage) -> Tensor:
    """Real images [n, c, h, w], blended like a fading generator's (Karras et al. 2018, §A.1)."""
    if not stage.fading:
        return images
    return blend(upsample(downsample(images)), images, stage.alpha)


class Growing(nn.Module):
    """A network on a ladder: it knows its rungs, and freezes what a stage does not use.

    `heads` maps each rung to the module that reads or draws images at that rung only. `joins_at`
    names the modules that join at a rung and stay. All other modules are always active.
    """

    def __init__(self, rungs: tuple[int, ...]):
        super().__init__()
        self.rungs = rungs
        self.heads = nn.ModuleDict()

    def joins_at(self, rung: int) -> Iterable[nn.Module]:
        """The modules that are used at this rung and above, but not below."""
        raise NotImplementedError

    def check_stage(self, stage: Stage) -> None:
        """Raise ValueError if the network has no such stage."""
        if stage.resolution not in self.rungs:
            raise ValueError(f"no rung of {stage.resolution} px; the rungs are {self.rungs}")
        if stage.fading and stage.resolution == self.rungs[0]:
            raise ValueError(f"the lowest rung, {self.rungs[0]} px, has none below to fade from")

    def activate(self, stage: Stage, frozen: Iterable[str] = ()) -> list[nn.Parameter]:
        """Require gradients of exactly those parameters that the stage uses, and return them.

        Those of the `frozen` modules need none. ValueError if there is no such module.
        """
        self.check_stage(stage)
        idle = {id(p) for p in self._idle_parameters(stage)}
        for name in frozen:
            idle |= {id(p) for p in self.parameters_of(name, stage)}
        active = []
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) not in idle)
            if parameter.requires_grad:
                active.append(parameter)
            else:
                parameter.grad = None
        return active

    def parameters_of(self, name: str, stage: Stage) -> list[nn.Parameter]:
        """The parameters of the module, or the one, with this name; ValueError if there are none."""
        below = [p for other, p in self.named_parameters() if f"{other}.".startswith(f"{name}.")]
        if not below:
            raise ValueError(f"no module {name!r} has weights; its parts are {', '.join(self._parts())}")
        return below

    def _parts(self) -> list[str]:
        """The names of modules with weights; of those that list others, the names of these."""
        parts = []
        for name, module in self.named_children():
            many = isinstance(module, nn.ModuleDict | nn.Sequential | nn.ModuleList)
            inner = module.named_children() if many else ()
            parts += [f"{name}.{key}" for key, each in inner if any(True for _ in each.parameters())]
            parts += [] if many else [name]
        return parts

    def _idle_parameters(self, stage: Stage) -> Iterable[nn.Parameter]:
        heads = {stage.resolution} | ({stage.resolution // 2} if stage.fading else set())
        for rung in self.rungs:
            if rung not in heads:
                yield from self.heads[str(rung)].parameters()
            if rung > stage.resolution:
                for module in self.joins_at(rung):
                    yield from module.parameters()


@dataclass(frozen=True)
class Mixing:
    """Second latents [n, z]; they steer each image's layers from `first_layer` [n] (int64) on."""

    latents: Tensor
    first_layer: Tensor


class GrowingGenerator(Growing):
    """Blocks from the base up. Each leads to a resolution at which a head may draw images.

    `blocks`, and the `attention` that follows a block, are keyed by the rung that their features are
    drawn at. A family fills them in. The methods about styles are for families whose configuration
    `has_styles`; in all others they raise TypeError.
    """

    def __init__(self, rungs: tuple[int, ...]):
        super().__init__(rungs)
        self.blocks = nn.ModuleDict()
        self.attention = nn.ModuleDict()

    def ascend(self, x: Tensor, stage: Stage, conditions: Sequence[Sequence[Any]] = ()) -> Tensor:
        """Images at the stage; `conditions` are each block's arguments besides the features, if any."""
        self.check_stage(stage)
        features = {}
        for i, (rung, block) in enumerate(self.blocks.items()):
            x = block(x, *conditions[i]) if conditions else block(x)
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

    @override
    def joins_at(self, rung: int) -> Iterable[nn.Module]:
        yield self.blocks[str(rung)]
        if str(rung) in self.attention:
            yield self.attention[str(rung)]

    def layer_count(self, stage: Stage) -> int:
        """Layers that take a style at this stage."""
        raise self._no_styles()

    def styles(self, latents: Tensor, labels: Tensor, stage: Stage) -> Tensor:
        """Styles [n, layers, z] of latents [n, z] and labels [n]."""
        raise self._no_styles()

    def truncate(
        self, styles: Tensor, psi: float | Sequence[float], cutoff: int | None = None
    ) -> Tensor:
        """Styles [n, layers, z] pulled towards their average by `psi`, in the layers below `cutoff`."""
        raise self._no_styles()

    def draw_noise(self, seeds: Sequence[int] | Tensor, stage: Stage) -> list[Tensor]:
        """One plane of noise [len(seeds), 1, r, r] a layer; an image's depends on its seed alone.

        Seeds are in [0, 2³²).
        """
        raise self._no_styles()

    def synthesise(self, styles: Tensor, stage: Stage, noise: Sequence[Tensor] | None) -> Tensor:
        """Images from styles [n, layers, z] and one plane of noise [n or 1, 1, r, r] a layer."""
        raise self._no_styles()

    def average_styles(self, latents: Tensor, labels: Tensor, share: Tensor) -> None:
        """Move the average style by a share, a scalar, towards that of all workers' latents."""
        raise self._no_styles()

    def _no_styles(self) -> TypeError:
        return TypeError(f"{type(self).__module__} has no styles")


class GrowingDiscriminator(Growing):
    """The generator mirrored: heads read images, `descents` lead from rung to rung, then a tail.

    `descents[r]` leads from the features that `heads[r]` yields to those that `heads[r / 2]` yields.
    The tail is a sequence of blocks, too. `mixes_batch` is True if a logit depends on other images of
    the batch. A family defines the input of its last layer (`features`) and the logits from it
    (`judge`).
    """

    mixes_batch = False
    tail: nn.Sequential

    def __init__(self, rungs: tuple[int, ...]):
        super().__init__(rungs)
        self.descents = nn.ModuleDict()

    def forward(self, images: Tensor, labels: Tensor, stage: Stage) -> Tensor:
        """Logits [n] of images [n, channels, r, r] and, if there are classes, labels [n].

        ValueError if the ladder has no such rung.
        """
        return self.judge(self.features(images, stage), labels)

    def features(self, images: Tensor, stage: Stage) -> Tensor:
        """The last layer's input for each image: [n, f]."""
        raise NotImplementedError

    def judge(self, features: Tensor, labels: Tensor) -> Tensor:
        """Logits [n] from features [n, f]."""
        raise NotImplementedError

    def stack(self, steps: Iterable[tuple[int, nn.Module, Sequence[nn.Module]]]) -> list[nn.Module]:
        """Fill in heads and descents; each step is a resolution, its head, and the way to the next.

        Steps come from the image down. Heads off the ladder are left out. Returns the modules that
        follow the lowest rung.
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
        """Features at the lowest rung from images at the stage's resolution."""
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

    @override
    def parameters_of(self, name: str, stage: Stage) -> list[nn.Parameter]:
        """Also of `first.N`: the N blocks nearest the image at this stage, attention counted as one."""
        word, _, count = name.partition(".")
        if word != "first" or not count.isdigit() or not int(count):
            return super().parameters_of(name, stage)
        lower = stage.resolution // 2 if stage.fading else stage.resolution
        near = [self.heads[str(rung)] for rung in {lower, stage.resolution}]
        rungs = [rung for rung in reversed(self.rungs[1:]) if rung <= stage.resolution]
        way = [block for rung in rungs for block in self.descents[str(rung)].children()]
        way += self.tail.children()
        blocks = [*near, *way[: int(count) - 1]]
        most = 1 + sum(len([*part.children()]) for part in (*self.descents.values(), self.tail))
        if int(count) > most:
            raise ValueError(f"{name}: there are {most} blocks, first.1 to first.{most}")
        return [parameter for block in blocks for parameter in block.parameters()]

    @override
    def _parts(self) -> list[str]:
        return ["first.1 (the block nearest the image), first.2 and so on", *super()._parts()]

    @override
    def joins_at(self, rung: int) -> Iterable[nn.Module]:
        if str(rung) in self.descents:
            yield self.descents[str(rung)]
