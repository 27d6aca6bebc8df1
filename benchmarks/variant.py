"""Functions that are measured against each other: each in its own process, one at a time."""

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from multiprocessing.connection import Connection
from types import MappingProxyType
from typing import Any

NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})


class Variant:
    """A function in its own process, undisturbed by other variants.

    `build(*arguments)` makes the function there. It is called once before any measurement; `first` is
    that result. `environment` is added to this process's own. With `waits` False the constructor does
    not wait for it, so that several can begin together; read `first` before any measurement.
    """

    def __init__(
        self,
        build: Callable[..., Callable[[], Any]],
        *arguments: Any,
        environment: Mapping[str, str] = NO_ENVIRONMENT,
        waits: bool = True,
    ):
        context = multiprocessing.get_context("spawn")
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=_serve, args=(end, build, arguments))
        before = dict(os.environ)
        os.environ.update(environment)
        self._process.start()
        end.close()  # so that `recv` here raises if the process dies
        os.environ.clear()
        os.environ.update(before)
        if waits:
            _ = self.first

    @cached_property
    def first(self) -> Any:
        """What the function returned at its first call."""
        return self._pipe.recv()

    def call(self, times: int = 1) -> tuple[float, Any]:
        """Call the function `times` times; returns the seconds and the last result."""
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
