"""How many operations a cycle takes, and how many the device could take."""

import re
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

PEAK_BF16 = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "V100": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
}
"""Dense bf16 FLOP/s of tensor cores, by words of the device's name (V100: fp16); the first counts."""


class Flops(TorchDispatchMode):
    """Counts the operations of matrix products and convolutions, gradients of gradients included.

    torch's own counter follows modules too, and does not take `autograd.grad` inside a step.
    """

    total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # nothing that is compiled is counted, and the way around the compiler would import it
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def peak_flops(device: torch.device) -> float | None:
    """The device's peak in bf16, if the table has it."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for words, peak in PEAK_BF16.items() if re.search(rf"\b{words}\b", name)), None)
