"""Processes that read and decode beside the training, and fill batches in memory they share with it.

Threads would not do: whatever holds Python's lock, be it the training loop or a request to S3, stops
every one of them at each image. So one process reads windows for a worker, and one or more decode
them. Each ends when its parent does, however that comes about.
"""

import contextlib
import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.data.order import Order, WindowKey
from service.data.samples import BadSamples, BadWindow, Batch, Request, Samples, Source, unlabelled
from service.data.stream import Stream, Window
from service.errors import DataError, ServiceError
from service.glibc import KEEP_FREED_MEMORY
from service.storage import StorageError

END_LIMIT_S = 10.0


# The training's end ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """Part of a batch: where the whole begins in the shared memory, its shape, the places to fill."""

    begin: int
    shape: tuple[int, ...]
    places: NDArray[np.intp]
    request: Request


@dataclass(frozen=True)
class _Answer:
    """The rows that were shown at the job's places, new bad samples, and what was read so far."""

    rows: NDArray[np.int64]
    bad: dict[tuple[int, int], str]
    counts: dict[str, int]


@dataclass(frozen=True)
class Ticket:
    """A batch that is being filled, and by whom."""

    begin: int
    shape: tuple[int, ...]
    shares: list[tuple["_Process", NDArray[np.intp]]]


class Feeders:
    """A reading process and some that decode, each lanes of its own; together they fill batches.

    `batch_bytes` is the largest batch that will be asked for, `batches` how many at once. Batches are
    received in the order in which they were asked for. Errors of a process are raised there.
    """

    def __init__(self, source: Source, decoders: int, batches: int, batch_bytes: int):
        self.source, self.batches, self.batch_bytes = source, batches, batch_bytes
        self._owners: dict[int, int] = {}
        self._turn = 0
        self._bad = BadSamples(source)
        self._counts: dict[str, int] = {}
        pairs = [socket.socketpair() for _ in range(decoders)]
        memory = _shared_memory(batches * batch_bytes)
        self._memory = mmap.mmap(memory, batches * batch_bytes)
        self._reader = _Process(_serve_windows, [end.fileno() for end, _ in pairs], source)
        setup = (source.order, unlabelled(source))
        self._decoders = [_Process(_serve_batches, [end.fileno(), memory], setup) for _, end in pairs]
        os.close(memory)
        for pair in pairs:
            for end in pair:
                end.close()

    def start(self, request: Request) -> Ticket:
        """Have a batch filled; at most `batches` may be under way."""
        shape = (len(request.numbers), request.resolution, request.resolution, self.source.channels)
        begin = self._turn * self.batch_bytes
        self._turn = (self._turn + 1) % self.batches
        lanes = (request.numbers % self.source.order.lanes).tolist()
        owners = np.array([self._owner(lane) for lane in lanes])
        shares = []
        for i, decoder in enumerate(self._decoders):
            places = np.flatnonzero(owners == i)
            if len(places):
                decoder.send(_Job(begin, shape, places, request.take(places)))
                shares.append((decoder, places))
        return Ticket(begin, shape, shares)

    def receive(self, ticket: Ticket) -> Batch:
        """The batch; its images lie in the shared memory, until as many others have been started."""
        rows = np.empty(ticket.shape[0], np.int64)
        for decoder, places in ticket.shares:
            answer = decoder.receive()
            if isinstance(answer, BadWindow):
                raise self._bad.whole_window(answer)
            if isinstance(answer, Exception):
                raise answer
            rows[places] = answer.rows
            self._bad.add(answer.bad)
            self._counts |= answer.counts
        images = _view(self._memory, ticket.begin, ticket.shape)
        return Batch(images, self.source.labels(rows), rows)

    def counts(self) -> dict[str, int]:
        """What was read since the processes were started, for the curves."""
        names = ("data_requests", "data_bytes", "data_retries", "cache_hits", "cache_misses")
        return {"bad_samples": len(self._bad)} | {name: self._counts.get(name, 0) for name in names}

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        processes = [*self._decoders, self._reader]
        for process in processes:
            process.end()
        for process in processes:
            process.wait()

    def __enter__(self) -> "Feeders":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _owner(self, lane: int) -> int:
        return self._owners.setdefault(lane, len(self._owners) % len(self._decoders))


class _Process:
    """Another process, seen from its parent: it is sent `setup`, then whatever it serves."""

    def __init__(self, serve: Callable[..., None], files: list[int], setup: Any):
        self._connection, end = Pipe()
        given = [end.fileno(), *files]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, serve.__name__, *map(str, given)],
            pass_fds=given,
            stdin=subprocess.DEVNULL,
            env=os.environ | KEEP_FREED_MEMORY | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        end.close()
        self.send(setup)

    def send(self, message: Any) -> None:
        """Send a job; that the process died is told where an answer is waited for."""
        with contextlib.suppress(OSError):
            self._connection.send(message)

    def receive(self) -> Any:
        """The answer to the oldest job that is not yet answered."""
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            code = self._process.wait(END_LIMIT_S)
            raise RuntimeError(f"a process that decodes images died (exit code {code})") from None

    def end(self) -> None:
        """Ask it to end, which it does at once."""
        self._connection.close()

    def wait(self) -> None:
        """Wait for its end, and make it so if need be."""
        try:
            self._process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _shared_memory(size: int) -> int:
    """A file that is memory alone and has no name: it ends with the last process that holds it."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("batches")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, size)
    return file


def _view(memory: mmap.mmap, begin: int, shape: Sequence[int]) -> NDArray[np.uint8]:
    return np.frombuffer(memory, np.uint8, int(np.prod(shape)), begin).reshape(shape)


# The reading process -----------------------------------------------------------------------------


def _serve_windows(parent: Connection, *decoders: int) -> None:
    """Read the windows that the decoders ask for, until the parent is gone."""
    source: Source = parent.recv()
    reader = source.open_reader()
    for decoder in decoders:
        asked: queue.SimpleQueue[tuple[WindowKey, Future[Window]]] = queue.SimpleQueue()
        end = socket.socket(fileno=decoder)
        for work in (_take_asks, _send_windows):
            threading.Thread(target=work, args=(end, asked, reader), daemon=True).start()
    _await_end(parent)


def _take_asks(end: socket.socket, asked: queue.SimpleQueue, reader: Any) -> None:
    connection = Connection(os.dup(end.fileno()))
    with contextlib.suppress(EOFError, OSError):
        while True:
            key = connection.recv()
            asked.put((key, reader.ask(key)))


def _send_windows(end: socket.socket, asked: queue.SimpleQueue, reader: Any) -> None:
    connection = Connection(os.dup(end.fileno()))
    with contextlib.suppress(OSError):
        while True:
            key, read = asked.get()
            error = read.exception()
            if error is not None:
                connection.send((key, _portable(error)))
                continue
            window: Window = read.result()
            sizes = [len(blob) for blob in window.blobs]
            connection.send((key, (replace(window, blobs=[]), sizes, reader.counts())))
            for blob in window.blobs:
                end.sendall(blob)
            del read, window  # let go of before the next one is waited for


# A decoding process ------------------------------------------------------------------------------


class _RemoteReader:
    """The reading process, seen from a decoder, which takes what has come whenever it looks.

    A thread that took it would stop the decoding for Python's lock.
    """

    def __init__(self, end: int):
        self.counts: dict[str, int] = {}
        self._socket = socket.socket(fileno=end)
        self._connection = Connection(os.dup(end))
        self._asked: dict[WindowKey, _Read] = {}

    def ask(self, key: WindowKey) -> "_Read":
        """Have a window read."""
        self._connection.send(key)
        read = self._asked[key] = _Read(self)
        return read

    def take_what_is_there(self) -> None:
        """Take the windows that have come."""
        while self._asked and self._connection.poll():
            self.take_one()

    def take_one(self) -> None:
        """Wait for a window, and take it."""
        key, found = self._connection.recv()
        read = self._asked.pop(key)
        if isinstance(found, Exception):
            read.found = found
            return
        window, sizes, self.counts = found
        blobs = [bytearray(size) for size in sizes]
        for blob in blobs:
            _receive_into(self._socket, blob)
        read.found = replace(window, blobs=blobs)


class _Read:
    """A window that was asked for."""

    def __init__(self, reader: _RemoteReader):
        self.found: Window | Exception | None = None
        self._reader = reader

    def result(self) -> Window:
        """The window; waits until it has come."""
        while self.found is None:
            self._reader.take_one()
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def _receive_into(end: socket.socket, blob: bytearray) -> None:
    """Fill the blob in as few calls as it takes, each of which lets go of Python's lock."""
    view = memoryview(blob)
    while view:
        count = end.recv_into(view, len(view), socket.MSG_WAITALL)
        if not count:
            raise EOFError
        view = view[count:]


def _serve_batches(parent: Connection, reader: int, memory: int) -> None:
    """Fill batches, job by job, until the parent is gone."""
    setup: tuple[Order, NDArray[np.int64]] = parent.recv()
    remote, pixels = _RemoteReader(reader), mmap.mmap(memory, 0)
    samples = Samples(Stream(setup[0], remote.ask), setup[1])
    jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
    threading.Thread(target=_await_end, args=(parent, jobs.put), daemon=True).start()
    while True:
        job = jobs.get()
        told = len(samples.bad)
        try:
            remote.take_what_is_there()
            rows = samples.fill(job.request, _view(pixels, job.begin, job.shape), job.places)
            parent.send(_Answer(rows, dict(list(samples.bad.items())[told:]), remote.counts))
        except (EOFError, OSError):
            parent.send(RuntimeError("the process that reads shards died"))
        except Exception as error:
            parent.send(_portable(error))


def _await_end(parent: Connection, take: Callable[[Any], object] = lambda _: None) -> None:
    """Take what the parent sends, and end this process with it, in the midst of what it does."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            take(parent.recv())
    os._exit(0)


def _portable(error: BaseException) -> Exception:
    """The error as one that travels: of a class that all know, with its words."""
    for kind in (DataError, StorageError, ServiceError):
        if isinstance(error, kind):
            return kind(str(error))
    if isinstance(error, BadWindow):
        return error
    told = "".join(traceback.format_exception(error))
    return RuntimeError(f"reading data failed:\n{told}")


def main(arguments: Sequence[str]) -> None:
    """What each process runs: a function, and its ends of connections and memory by number."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when it ends
    serve, parent, *files = arguments
    run = _serve_windows if serve == _serve_windows.__name__ else _serve_batches
    run(Connection(int(parent)), *map(int, files))


if __name__ == "__main__":
    from service.data import feeder  # what travels is of this module by its name, not of __main__

    feeder.main(sys.argv[1:])
