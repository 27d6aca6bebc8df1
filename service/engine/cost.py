"""What a cycle costs, found without a device: kernels to launch, exchanges, operations."""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from models.growth import GrowingDiscriminator, GrowingGenerator
from service.collapse.signals import Spectra
from service.config import Config
from service.config.portions import Portions, portions
from service.data.dataset import Batch
from service.engine.curriculum import Cycle, Span, curriculum_of
from service.engine.distributed import Workers
from service.engine.flops import Flops
from service.engine.inputs import Arrays, Sources
from service.engine.state import networks, state_of
from service.engine.step import Step

CPU, META = torch.device("cpu"), torch.device("meta")


@dataclass(frozen=True)
class Cost:
    """What the first cycle of a phase takes of one worker, which is one with all lazy penalties.

    `launches` are kernels or more, `exchanges` collectives, `flops` the operations of matrix products
    and convolutions. `peak_bytes` is what tensors hold at a time at most, weights and averages included;
    what libraries and CUDA itself take comes on top.
    """

    launches: int
    exchanges: int
    flops: int
    peak_bytes: int

    def beside(self, other: "Cost", times: float) -> "Cost":
        """So many times as far from this as the other cost, on a line through both."""
        mine, theirs = vars(self), vars(other)
        return Cost(**{name: round(mine[name] + times * (theirs[name] - mine[name])) for name in mine})


def costs(config: Config, span: Span, counts: Sequence[int]) -> Iterator[Cost]:
    """What a cycle of this phase takes where so many workers share it, for each count.

    The step is taken on tensors that have a shape and nothing else, so it needs no memory and no GPU.
    With `scale.device_batch` "auto" the whole share is taken to go through at once.
    """
    training = config.training.model_copy(update={"compile": False})
    config = config.model_copy(update={"training": training})
    fake = FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False)
    group = config.group(span.batch)
    for workers in counts:
        dealt = portions(span.batch, group, workers, config.scale.most_at_once)
        # many portions would take long, and each costs as much as another
        tried = (dealt.count,) if dealt.count <= 3 else (2, 3)
        first, *second = (_cost(config, span, workers, dealt, count, fake) for count in tried)
        yield first.beside(second[0], dealt.count - tried[0]) if second else first


def _cost(
    config: Config, span: Span, workers: int, dealt: Portions, count: int, fake: FakeTensorMode
) -> Cost:
    """The cost of a batch that goes through in `count` portions like those that are dealt."""
    alone = Workers(0, workers, CPU, apart=True)
    generator, discriminator, ema = _shapes(config, fake)
    batch = dealt.size * count * workers
    with fake, _Tally() as tally:
        state = state_of(config, generator, discriminator, ema, Spectra({}))
        step = Step(config, state, alone, lambda _: dealt.size)
        step.sources = _Repeated(config, batch, dealt.size * count)
        cycle = curriculum_of(config).at(span.start)
        images = span.cycle_images // span.batch * batch
        cycle = replace(cycle, span=replace(span, batch=batch, cycle_images=images))
        step.cycle(cycle, _batches(cycle, config))  # in which Adam begins its averages
        tally.clear()
        alone.exchanges.clear()
        step.cycle(cycle, _batches(cycle, config))
    return Cost(tally.launches, alone.exchanges.total(), tally.total, tally.peak_bytes)


class _Repeated(Sources):
    """Draws the inputs of one image, which stand for those of a whole share."""

    def __init__(self, config: Config, batch: int, share: int):
        super().__init__(config, 0, 0, Workers(0, batch, CPU))
        self._share = share

    @override
    def cycle(self, cycle: Cycle, batches: Iterator[Batch], layers: int) -> Iterator[Arrays]:
        for arrays in super().cycle(cycle, batches, layers):
            yield {name: self._repeat(array) if array.ndim else array for name, array in arrays.items()}

    def _repeat(self, array: NDArray[Any]) -> NDArray[Any]:
        return as_strided(array, (self._share, *array.shape[1:]), (0, *array.strides[1:]))


def _batches(cycle: Cycle, config: Config) -> Iterator[Batch]:
    """Batches of the only image of a worker among as many as there are images."""
    side = cycle.span.resolution
    images = np.zeros((1, side, side, config.model.channels), np.uint8)
    for clock in cycle.batches():
        yield Batch(images, np.zeros(1, np.int64), np.zeros(1, np.int64), clock)


class _Tally(Flops):
    """Counts what is launched, too, and how much memory the tensors hold at most."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.peak_bytes = 0
        self._held: dict[int, int] = {}
        self._holds = 0

    def clear(self) -> None:
        """Begin anew; what is held is held."""
        self.launches = self.total = 0
        self.peak_bytes = self._holds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        looks = func.is_view or func.namespace == "prim" or func.overloadpacket.__name__ in _LOOKS
        self.launches += not looks
        if func is torch.ops.aten.batch_norm_update_stats.default:  # which torch knows no shape of
            result = tuple(args[0].new_empty(args[0].shape[1]) for _ in range(2))
        else:
            result = super().__torch_dispatch__(func, types, args, kwargs)
        for tensor in tree_leaves((args, result)):
            if isinstance(tensor, FakeTensor):
                self._hold(tensor.untyped_storage())
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        """Count this memory until nothing refers to it, in pieces as the allocator gives them."""
        key = id(storage)
        if key not in self._held:
            self._held[key] = -(-storage.nbytes() // _PIECE_BYTES) * _PIECE_BYTES
            self._holds += self._held[key]
            self.peak_bytes = max(self.peak_bytes, self._holds)
            weakref.finalize(storage, self._release, key).atexit = False

    def _release(self, key: int) -> None:
        self._holds -= self._held.pop(key)


_LOOKS = ("detach", "_unsafe_view", "empty", "empty_like", "empty_strided")
"""Operations that make a tensor, and compute nothing."""

_PIECE_BYTES = 512


def _shapes(
    config: Config, fake: FakeTensorMode
) -> tuple[GrowingGenerator, GrowingDiscriminator, GrowingGenerator]:
    """Generator, discriminator and EMA, whose tensors have shape, type and layout, but no values."""
    with META:
        made = *networks(config, META), networks(config, META)[0].requires_grad_(False)

    def shape_of(tensor: Tensor) -> Tensor:
        with fake:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CPU)

    for module in (module for network in made for module in network.modules()):
        for name, parameter in [*module.named_parameters(recurse=False)]:
            setattr(module, name, nn.Parameter(shape_of(parameter), parameter.requires_grad))
        for name, buffer in [*module.named_buffers(recurse=False)]:
            setattr(module, name, shape_of(buffer))
    return made
