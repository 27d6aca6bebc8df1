"""Networks compiled into fewer kernels, which read and write less memory; as they are if that fails."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)


class Compiled:
    """Calls a network compiled: each shape of input is, when it first comes.

    It cannot be differentiated twice. What cannot be compiled is logged, and the network is called as it
    is from then on.
    """

    def __init__(self, network: nn.Module, backend: str = "inductor"):
        self._network = network
        self._call: Callable[..., Any] = torch.compile(network, dynamic=False, backend=backend)

    def __call__(self, *arguments: Any) -> Any:
        """The network's output."""
        from torch._dynamo.exc import TorchDynamoException  # loading it takes a second

        try:
            return self._call(*arguments)
        except TorchDynamoException as error:
            if self._call is self._network:
                raise
            reason = " ".join(str(error).split()[:30])
            log.warning("event=not_compiled network=%s error=%r", type(self._network).__module__, reason)
            self._call = self._network
            return self._network(*arguments)
