"""What a CUDA graph does, on a CPU: record all operations once, then repeat them in the same places.

A graph holds the tensors' addresses and the numbers that were in the arguments; nothing else of what the
host does while it is captured happens again. So does a tape: a cycle that depends on anything but its
tensors goes astray when it is replayed, and one that reads a value back cannot be recorded.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

READS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "unique"}
"""Operations whose result the host would have to wait for."""


class Tape(TorchDispatchMode):
    """Records what is computed inside; `replay` computes it again, into the same tensors.

    RuntimeError names an operation that gives the host a value, unless it `reads`.
    """

    def __init__(self, reads: bool = False) -> None:
        super().__init__()
        self._reads = reads
        self._steps: list[tuple[Callable[..., Any], Any, Any, list[Tensor]]] = []

    @property
    def counts(self) -> Counter[str]:
        """How often each operation ran, views left out, for they launch nothing."""
        return Counter(function.overloadpacket.__name__ for function, *_ in self._steps)

    @property
    def collectives(self) -> Counter[str]:
        """How often each exchange between workers ran."""
        names = [f.overloadpacket.__name__ for f, *_ in self._steps if f.namespace == "c10d"]
        return Counter(names)

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name in READS and not self._reads:
            raise RuntimeError(f"{name} gives the host a value, for which it waits")
        result = function(*arguments, **(named or {}))
        if not function.is_view and name not in ("detach", "_unsafe_view"):
            made = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]
            self._steps.append((function, arguments, named or {}, made))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Do it all again."""
        for function, arguments, named, made in self._steps:
            again = tree_flatten(function(*arguments, **named))[0]
            for old, new in zip(made, (t for t in again if isinstance(t, Tensor)), strict=True):
                if old.data_ptr() != new.data_ptr():  # not one that changes its argument
                    old.copy_(new)


class Tapes:
    """Stands for `service.engine.capture.Replays`: tapes instead of graphs."""

    def __init__(self, device: torch.device):
        self._begun: set[Hashable] = set()
        self.tapes: dict[Hashable, tuple[Tape, dict[str, Tensor]]] = {}
        self.replays = 0

    def __call__(self, kind: Hashable, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        if kind not in self._begun:  # in its first cycle Adam begins its averages
            self._begun.add(kind)
            return work()
        if kind not in self.tapes:
            with Tape() as tape:  # which computes, too: that is the first replay
                results = work()
            self.tapes[kind] = tape, results
            return results
        tape, results = self.tapes[kind]
        tape.replay()
        self.replays += 1
        return results
