"""One worker among the others. Only this module knows of collectives and ranks."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from service import environment

PIECE_BYTES = 64 << 20


class _Sum(torch.autograd.Function):
    """All-reduce. It is its own adjoint, so it can be differentiated any number of times."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(grads[0], ctx.group), None


@dataclass(frozen=True)
class Peers:
    """`count` workers that measure together; `group` is their process group, None that of all."""

    count: int = 1
    group: dist.ProcessGroup | None = None

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the peers; its gradient is summed over them too."""
        return _Sum.apply(tensor, self.group) if self.count > 1 else tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all peers, [count, …], in the order of their index; passes no gradient."""
        if self.count == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        dist.all_gather(parts, tensor.contiguous(), group=self.group)
        return torch.stack(parts)


class _ImaginedSum(torch.autograd.Function):
    """A tensor times the peers, which is its own adjoint as the sum is; counted each time."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, peers: "Imagined") -> Tensor:
        ctx.peers = peers
        peers.exchanges["sum"] += 1
        return tensor * peers.count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _ImaginedSum.apply(grads[0], ctx.peers), None


@dataclass(frozen=True)
class Imagined(Peers):
    """Peers that are not asked: each is taken to have what this worker has.

    What would have been exchanged is counted in `exchanges`.
    """

    exchanges: Counter[str] = field(default_factory=Counter, compare=False)

    @override
    def sum(self, tensor: Tensor) -> Tensor:
        return _ImaginedSum.apply(tensor, self) if self.count > 1 else tensor

    @override
    def gather(self, tensor: Tensor) -> Tensor:
        self.exchanges["gather"] += self.count > 1
        return tensor[None].expand(self.count, *tensor.shape)


@dataclass(frozen=True)
class Workers:
    """This worker among `count`; `device` is where it computes. `index` 0 is the first worker.

    It waits `timeout_s` for the others.

    With `apart` it exchanges nothing, and takes the others to have what it has itself: so it can try
    whether something fits, without being waited for if it does not. `exchanges` counts, by kind, what it
    would have exchanged.
    """

    index: int
    count: int
    device: torch.device
    timeout_s: float = 300.0
    apart: bool = False
    exchanges: Counter[str] = field(default_factory=Counter, init=False, compare=False)
    _peers: dict[int, Peers] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def is_first(self) -> bool:
        """Whether this is the worker that writes checkpoints and records."""
        return self.index == 0

    def share(self, start: int, size: int) -> NDArray[np.int64]:
        """This worker's sample numbers in the global [start, start + size): every count-th one."""
        return np.arange(start + (self.index - start) % self.count, start + size, self.count)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all workers; its gradient is summed over all workers too."""
        return self._all.sum(tensor)

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all workers, [count, …], in the order of their index; passes no gradient."""
        return self._all.gather(tensor)

    @property
    def _all(self) -> Peers:
        return Imagined(self.count, exchanges=self.exchanges) if self.apart else Peers(self.count)

    def peers(self, count: int) -> Peers:
        """The `count` workers whose indices leave this worker's remainder, divided by all / count.

        They talk in a process group of their own. All workers must ask for the same counts, in the same
        order.
        """
        if self.apart:
            return Imagined(count, exchanges=self.exchanges)
        if count == 1:
            return Peers()
        if count not in self._peers:
            stride = self.count // count
            members = [[*range(first, self.count, stride)] for first in range(stride)]
            group, _ = dist.new_subgroups_by_enumeration(
                members, timeout=timedelta(seconds=self.timeout_s)
            )
            self._peers[count] = Peers(count, group)
        return self._peers[count]

    def alone(self) -> "Workers":
        """This worker, exchanging nothing."""
        return replace(self, apart=True)

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over all workers."""
        return self.sum(tensor) / self.count

    def average_(self, tensor: Tensor) -> None:
        """Replace a tensor by its mean over all workers."""
        if self.apart:
            self.exchanges["average"] += self.count > 1
        elif self.count > 1:
            dist.all_reduce(tensor)
            tensor.div_(self.count)

    def all(self, here: bool) -> bool:
        """Whether something is so on every worker; all of them ask."""
        elsewhere = self.sum(torch.tensor([0.0 if here else 1.0], device=self.device))
        return not elsewhere.item()

    def least(self, value: int) -> int:
        """The smallest of all workers' values."""
        return int(self.gather(torch.tensor([value], device=self.device)).min().item())

    def agree(self, value: int) -> int:
        """The first worker's value, on all of them."""
        if self.count == 1 or self.apart:
            return value
        tensor = torch.tensor([value], device=self.device)
        dist.broadcast(tensor, src=0)
        return int(tensor.item())

    def follow_(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by the first worker's."""
        if self.count > 1 and not self.apart:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def spread(self, data: bytes) -> bytes:
        """The first worker's bytes, on all of them."""
        size = self.agree(len(data))
        if self.count == 1:
            return data
        received = bytearray(0 if self.is_first else size)
        for start in range(0, size, PIECE_BYTES):  # a device need not hold all of it
            end = min(start + PIECE_BYTES, size)
            piece = bytearray(data[start:end]) if self.is_first else bytearray(end - start)
            tensor = torch.frombuffer(piece, dtype=torch.uint8).to(self.device)
            dist.broadcast(tensor, src=0)
            if not self.is_first:
                received[start:end] = tensor.cpu().numpy().data
        return data if self.is_first else bytes(received)


def meet(backend: str, timeout_s: float) -> None:
    """Wait for the other workers at MASTER_ADDR, and form the process group with them."""
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))


def join(timeout_s: float = 300.0) -> Workers:
    """This process among the workers of torch's process group, or alone on the CPU without one."""
    if not dist.is_initialized():
        return Workers(0, 1, torch.device("cpu"))
    device = torch.device("cpu")
    if dist.get_backend() == "nccl":
        device = torch.device("cuda", environment.local_rank())
        torch.cuda.set_device(device)
    return Workers(dist.get_rank(), dist.get_world_size(), device, timeout_s)
