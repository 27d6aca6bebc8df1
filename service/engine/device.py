"""How a GPU computes: in which precision fp32 is multiplied, and with which kernels."""

import functools
import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from service.config.sections import TrainingSettings

_LACK = re.compile(r"CU(DNN|BLAS)_STATUS_ALLOC_FAILED|CUDA error: out of memory")


def use_device(training: TrainingSettings, device: torch.device) -> None:
    """Set for this process what the settings say of a GPU; other devices have no such choices."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes stay the same for a whole phase
        _use_tf32(training.tf32, training.tf32)


@functools.cache
def side_stream(device: torch.device, use: str) -> torch.cuda.Stream:
    """This process's stream for a use: libraries keep memory for each stream that there ever was."""
    return torch.cuda.Stream(device)


def fuses_attention(device: torch.device) -> bool:
    """Whether attention in one kernel is faster there."""
    return device.type == "cuda"


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


def lacks_memory(error: RuntimeError) -> bool:
    """Whether it says that the device's memory did not suffice, to PyTorch or to a library under it."""
    return isinstance(error, torch.OutOfMemoryError) or bool(_LACK.search(str(error)))


def release() -> None:
    """Give memory that nothing refers to back to the device."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
