"""Networks compiled into fewer kernels, which read and write less memory; as they are if that fails."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)

RECOMPILATIONS = 64
"""More than any curriculum needs; beyond torch's own limit of 8 it would go on without a word."""


class Compiled:
    """Calls a network compiled: each shape of input is, when it first comes.

    It cannot be differentiated twice. A forward that cannot be compiled is logged, and the network is
    called as it is from then on; its backward is compiled later, and an error there ends the run.
    """

    def __init__(self, network: nn.Module, backend: str = "inductor"):
        from torch._dynamo import config  # loading it takes a second

        # each phase is compiled for itself, with and without gradients
        config.recompile_limit = max(config.recompile_limit, RECOMPILATIONS)
        self._network = network
        self._call: Callable[..., Any] = torch.compile(network, dynamic=False, backend=backend)

    def __call__(self, *arguments: Any) -> Any:
        """The network's output."""
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._call(*arguments)
        except TorchDynamoException as error:
            if self._call is self._network:
                raise
            reason = " ".join(str(error).split()[:30])
            log.warning("event=not_compiled network=%s error=%r", type(self._network).__module__, reason)
            self._call = self._network
            return self._network(*arguments)
