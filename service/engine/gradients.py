"""The gradients of a network in one piece of memory: cleared, exchanged and measured at once."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from service.engine.distributed import Workers

ALIGNMENT = 64
"""Each gradient begins at a multiple of so many values, as fused kernels like it."""


class Gradients:
    """Gives every parameter a gradient of zeros, a view of one tensor in the parameter's own layout.

    With the `compression` "bf16", workers exchange them rounded to that.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], workers: Workers, compression: str = "none"):
        self._workers, self._in_bf16 = workers, compression == "bf16"
        starts = [0]
        for parameter in parameters:
            starts.append(starts[-1] + -(-parameter.numel() // ALIGNMENT) * ALIGNMENT)
        self._whole = parameters[0].new_zeros(starts[-1], requires_grad=False)
        for start, parameter in zip(starts, parameters, strict=False):
            place = self._whole[start : start + parameter.numel()]
            parameter.grad = place.as_strided(parameter.shape, parameter.stride())

    def clear(self) -> None:
        """Set all to 0."""
        self._whole.zero_()

    def exchange(self) -> None:
        """Replace each by its mean over all workers."""
        if not self._in_bf16:
            self._workers.average_(self._whole)
        elif self._workers.count > 1:
            sent = self._whole.bfloat16()
            self._workers.average_(sent)
            self._whole.copy_(sent)

    def norm(self) -> Tensor:
        """The norm of all of them together, a scalar."""
        return torch.linalg.vector_norm(self._whole)
