"""How a GPU computes: in which precision fp32 is multiplied, and with which kernels."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from service.config.sections import TrainingSettings


def use_device(training: TrainingSettings, device: torch.device) -> None:
    """Set for this process what the settings say of a GPU; other devices have no such choices."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes stay the same for a whole phase
        _use_tf32(training.tf32, training.tf32)


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside, fp32 is multiplied in fp32, whatever the settings say."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    _use_tf32(False, False)
    try:
        yield
    finally:
        _use_tf32(*before)


def _use_tf32(convolutions: bool, products: bool) -> None:
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.backends.cuda.matmul.allow_tf32 = products
