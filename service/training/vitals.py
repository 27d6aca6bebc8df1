"""What the workers' devices and hosts are doing: how busy, how hot, how full."""

import logging
import math
from collections.abc import Callable

import psutil
import torch
from torch import Tensor

log = logging.getLogger(__name__)

WORST: dict[str, Callable[[list[float]], float]] = {
    "gpu_busy": min,
    "gpu_temperature_c": max,
    "gpu_power_w": sum,
    "gpu_memory_share": max,
    "host_cpu_share": max,
    "host_memory_share": max,
    "host_step_share": max,
    "mfu": min,
}
"""Of all workers, the one value that is shown: the worst, or for power the sum."""


class Vitals:
    """Reads this worker's own: shares from 0 to 1, NaN for what cannot be known here."""

    def __init__(self, device: torch.device):
        self._device = device
        self._silent = device.type != "cuda"
        psutil.cpu_percent()  # which tells what came since the last call

    def read(self) -> dict[str, float]:
        """Since the last call, or now."""
        host = {
            "host_cpu_share": psutil.cpu_percent() / 100,
            "host_memory_share": psutil.virtual_memory().percent / 100,
        }
        return self._gpu() | host

    def _gpu(self) -> dict[str, float]:
        unknown = dict.fromkeys([name for name in WORST if name.startswith("gpu_")], math.nan)
        if self._silent:
            return unknown
        try:
            values = {
                "gpu_busy": torch.cuda.utilization(self._device) / 100,
                "gpu_temperature_c": float(torch.cuda.temperature(self._device)),
                "gpu_power_w": torch.cuda.power_draw(self._device) / 1000,
            }
        except Exception as error:  # the driver's own errors have no common kind
            log.warning("event=gpu_not_watched error=%s: %s", type(error).__name__, error)
            self._silent = True
            return unknown
        total = torch.cuda.get_device_properties(self._device).total_memory
        values["gpu_memory_share"] = torch.cuda.max_memory_reserved(self._device) / total
        torch.cuda.reset_peak_memory_stats(self._device)
        return unknown | values


def worst(names: list[str], table: Tensor) -> dict[str, float]:
    """What is shown of all workers' values [workers, names]; what nobody knows is left out."""
    shown = {}
    for name, column in zip(names, table.T.tolist(), strict=True):
        known = [value for value in column if not math.isnan(value)]
        if known:
            shown[name] = float(WORST[name](known))
            if name == "gpu_busy":
                shown["gpu_busy_rank"] = float(column.index(shown[name]))
    return shown
