"""Things that are measured against each other: each in a process of its own, one at a time."""

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from types import MappingProxyType
from typing import Any

NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})


class Variant:
    """A function in a process of its own, which none of the others disturbs.

    `build(*arguments)` makes it there, and it is called once before anything is measured. The
    `environment` is added to this process's own.
    """

    def __init__(
        self,
        build: Callable[..., Callable[[], Any]],
        *arguments: Any,
        environment: Mapping[str, str] = NO_ENVIRONMENT,
    ):
        context = multiprocessing.get_context("spawn")
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=_serve, args=(end, build, arguments))
        before = dict(os.environ)
        os.environ.update(environment)
        self._process.start()
        end.close()  # so that its end is seen here
        os.environ.clear()
        os.environ.update(before)
        self.first: Any = self._pipe.recv()

    def call(self, times: int = 1) -> tuple[float, Any]:
        """Seconds that so many calls took, and what the last returned."""
        self._pipe.send(times)
        return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        self._pipe.send(0)
        self._process.join()


def _serve(pipe: Connection, build: Callable[..., Callable[[], Any]], arguments: tuple) -> None:
    function = build(*arguments)
    pipe.send(function())
    while times := pipe.recv():
        start = time.perf_counter()
        for _ in range(times):
            result = function()
        pipe.send((time.perf_counter() - start, result))
