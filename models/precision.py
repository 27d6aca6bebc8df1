"""Where mixed precision must not reach."""

import contextlib

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """A context in which operations on the tensor's device keep the dtypes of their inputs.

    Nothing is entered where autocast is off: a graph that is exported needs no region for it.
    """
    device = tensor.device.type
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
