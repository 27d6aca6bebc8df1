"""One worker among the others. Only this module knows of DDP, all-reduce and ranks."""

import contextlib
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from service import environment

PIECE_BYTES = 64 << 20


class _Sum(torch.autograd.Function):
    """All-reduce. It is its own adjoint, so it can be differentiated any number of times."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _Sum.apply(grads[0].contiguous())


@dataclass(frozen=True)
class Workers:
    """This worker among `count`; `device` is where it computes. `index` 0 is the first worker."""

    index: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the worker that writes checkpoints and records."""
        return self.index == 0

    def share(self, start: int, size: int) -> NDArray[np.int64]:
        """This worker's sample numbers in the global [start, start + size): every count-th one."""
        return np.arange(start + (self.index - start) % self.count, start + size, self.count)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all workers; its gradient is summed over all workers too."""
        return _Sum.apply(tensor) if self.count > 1 else tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all workers, [count, …], in the order of their index; passes no gradient."""
        if self.count == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over all workers."""
        return self.sum(tensor) / self.count

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over the workers; wrap it again when parameters freeze."""
        if self.count == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            # torch 2.13 renames `broadcast_buffers`; older versions know only this name
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                module, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def accumulate(self, modules: Sequence[nn.Module], last: bool) -> AbstractContextManager:
        """Wraps a micro-batch's forward and backward: only the `last` one exchanges gradients."""
        stack = contextlib.ExitStack()
        if not last:
            for module in modules:
                if isinstance(module, DistributedDataParallel):
                    stack.enter_context(module.no_sync())
        return stack

    def all(self, here: bool) -> bool:
        """Whether something is so on every worker; all of them ask."""
        elsewhere = self.sum(torch.tensor([0.0 if here else 1.0], device=self.device))
        return not elsewhere.item()

    def agree(self, value: int) -> int:
        """The first worker's value, on all of them."""
        if self.count == 1:
            return value
        tensor = torch.tensor([value], device=self.device)
        dist.broadcast(tensor, src=0)
        return int(tensor.item())

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


def join() -> Workers:
    """This process among the workers of torch's process group, or alone on the CPU without one."""
    if not dist.is_initialized():
        return Workers(0, 1, torch.device("cpu"))
    device = torch.device("cpu")
    if dist.get_backend() == "nccl":
        device = torch.device("cuda", environment.local_rank())
        torch.cuda.set_device(device)
    return Workers(dist.get_rank(), dist.get_world_size(), device)
