"""The gradients of a network in one piece of memory: cleared, exchanged and measured at once."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from service.engine.distributed import Workers

ALIGNMENT = 64
"""Each gradient begins at a multiple of so many values, as fused kernels like it."""


class Gradients:
    """Gives every parameter a gradient of zeros, a view of one tensor in the parameter's own layout."""

    def __init__(self, parameters: Sequence[nn.Parameter], workers: Workers):
        self._workers = workers
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
        self._workers.average_(self._whole)

    def norm(self) -> Tensor:
        """The norm of all of them together, a scalar."""
        return torch.linalg.vector_norm(self._whole)
