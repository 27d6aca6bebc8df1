"""How fast a worker's own device computes: a fixed piece of work, timed at each look.

Workers that exchange gradients all take as long as the slowest of them, so the time of a cycle is the
same everywhere and names nobody.
"""

import time
from statistics import median

import torch
from torch import Tensor

TIMES = 5


class Pace:
    """Times products of matrices on a device: about a millisecond of work, without random numbers."""

    def __init__(self, device: torch.device):
        on_gpu = device.type == "cuda"
        size, dtype = (4096, torch.bfloat16) if on_gpu else (256, torch.float32)
        self._factor = torch.full((size, size), 1 / size, device=device, dtype=dtype)
        self._time()  # the first product loads and chooses kernels

    def seconds(self) -> float:
        """Seconds of one product: the median of some, for a machine may do other things in between."""
        return median(self._time() for _ in range(TIMES))

    def _time(self) -> float:
        start = time.perf_counter()
        product: Tensor = self._factor @ self._factor
        product[0, 0].item()  # waits for the device
        return time.perf_counter() - start


def slowest(seconds: Tensor) -> tuple[float, int]:
    """The seconds [workers] of the slowest over their median, and its rank."""
    rank = int(seconds.argmax())
    return (seconds[rank] / seconds.median()).item(), rank
