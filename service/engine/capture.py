"""Runs the same work again and again: on a GPU, after a few times, as a CUDA graph.

A graph launches all kernels of a cycle at once, from the places where they found their inputs when it
was captured. Where launches take longer than the kernels, the GPU no longer waits for the host.
"""

import logging
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from service.engine.device import release, side_stream

log = logging.getLogger(__name__)

EAGER = 2
"""So often work runs as it is first, beside the cycle that is counted: libraries choose kernels then."""

Work = Callable[[], dict[str, Tensor]]


def can_capture(device: torch.device) -> bool:
    """Whether the device replays graphs."""
    return device.type == "cuda"


class Replays:
    """Calls work, or replays its graph. What it returns stays until the next call.

    Work of one `kind` must do the same on tensors in the same places. Graphs of all kinds share their
    memory, for only one runs at a time.
    """

    def __init__(self, device: torch.device):
        self._stream = side_stream(device, "graphs")
        self._calls: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._refused = False

    def __call__(self, kind: Hashable, work: Work) -> dict[str, Tensor]:
        """The result of the work."""
        calls = self._calls[kind] = self._calls.get(kind, 0) + 1
        if self._refused:
            return work()
        if calls <= EAGER:
            return self._aside(work)
        if kind not in self._graphs and not self._capture(kind, work):
            return work()
        graph, results = self._graphs[kind]
        graph.replay()
        return results

    def _capture(self, kind: Hashable, work: Work) -> bool:
        """Make the graph; if that fails, no work is replayed any more, and nothing of it stays."""
        current = torch.cuda.current_stream()
        try:
            self._graphs[kind] = self._captured(work)
        except RuntimeError as error:
            self._refused = True
            self._graphs.clear()
            log.warning("event=not_captured error=%r", str(error).partition("\n")[0])
        if self._refused:  # here, where the error holds the tensors of the work no more
            torch.cuda.set_stream(current)
            release()
        return not self._refused

    def _aside(self, work: Work) -> dict[str, Tensor]:
        """On the stream on which it will be captured, as libraries keep memory for each stream."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            results = work()
        current.wait_stream(self._stream)
        return results

    def _captured(self, work: Work) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]:
        torch.cuda.empty_cache()  # the graph's memory is its own
        graph = torch.cuda.CUDAGraph()
        # threads that pin memory meanwhile are no part of it
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            results = work()
        return graph, results
