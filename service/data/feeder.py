"""Processes that read and decode beside the training, and fill batches in memory they share with it.

Threads would not do: whatever holds Python's lock, be it the training loop or a request to S3, stops
every one of them at each image. So one process reads windows for a worker, and one or more decode
them. Each ends when its parent does, however that comes about.
"""

import contextlib
import itertools
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
from service.data.stream import READ_OVER_BYTES, Stream, Window, WindowReader
from service.errors import DataError, ServiceError
from service.glibc import KEEP_FREED_MEMORY
from service.storage import StorageError

END_LIMIT_S = 10.0
SPARE_SLOTS = 16


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
        slots = _Slots.for_windows(source)
        arenas = [_shared_memory(slots.count * slots.size) for _ in range(decoders)]
        lines = [(end.fileno(), arena) for (end, _), arena in zip(pairs, arenas, strict=True)]
        self._reader = _Process(_serve_windows, list(itertools.chain(*lines)), (source, slots))
        setup = (source.order, unlabelled(source), slots)
        self._decoders = [
            _Process(_serve_batches, [end.fileno(), arena, memory], setup)
            for (_, end), arena in zip(pairs, arenas, strict=True)
        ]
        for file in (memory, *arenas):
            os.close(file)
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
            for name, count in answer.counts.items():  # one decoder may know less than another
                self._counts[name] = max(count, self._counts.get(name, 0))
        images = _view(self._memory, ticket.begin, ticket.shape)
        return Batch(images, self.source.labels(rows), rows)

    def counts(self) -> dict[str, int]:
        """What was read since the processes were started, for the curves; known from a batch on."""
        return {"bad_samples": len(self._bad)} | self._counts

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


# Memory for windows between the two ----------------------------------------------------------------


@dataclass(frozen=True)
class _Slots:
    """Shared memory cut into `count` pieces of `size` bytes, each for a window.

    A decoder gives a slot out with each window that it asks for, and takes it back once the window is
    forgotten. A window that finds no slot, or is too large for one, travels by the socket.
    """

    count: int
    size: int

    @classmethod
    def for_windows(cls, source: Source) -> "_Slots":
        """Two slots a lane and some to spare, of which those that are never used cost nothing."""
        index, order = source.index, source.order
        offset, size = index.offset[order.rows], index.size[order.rows].astype(np.int64)
        apart = np.diff(offset)  # what lies between two samples is read with them
        together = (np.diff(index.shard[order.rows]) == 0) & (apart - size[:-1] <= READ_OVER_BYTES)
        size[:-1] = np.where(together, apart, size[:-1])
        ends = np.concatenate([[0], np.cumsum(size)])
        run = min(order.window, order.lane_samples)
        largest = int((ends[run:] - ends[:-run]).max())
        return cls(2 * order.lanes + SPARE_SLOTS, -(-largest // mmap.PAGESIZE) * mmap.PAGESIZE)

    def view(self, arena: memoryview, slot: int) -> memoryview:
        """The memory of a slot."""
        return arena[slot * self.size : (slot + 1) * self.size]


# The reading process -----------------------------------------------------------------------------


def _serve_windows(parent: Connection, *files: int) -> None:
    """Read the windows that the decoders ask for, until the parent is gone."""
    setup: tuple[Source, _Slots] = parent.recv()
    reader = setup[0].open_reader()
    for decoder, arena in zip(files[::2], files[1::2], strict=True):
        line = _Line(socket.socket(fileno=decoder), memoryview(mmap.mmap(arena, 0)), setup[1], reader)
        for work in (line.take_asks, line.send_windows):
            threading.Thread(target=work, daemon=True).start()
    _await_end(parent)


class _Line:
    """The reading process's end of the line to one decoder."""

    def __init__(self, end: socket.socket, arena: memoryview, slots: _Slots, reader: WindowReader):
        self._socket, self._arena, self._slots, self._reader = end, arena, slots, reader
        self._asked: queue.SimpleQueue[tuple[WindowKey, int | None, Future[Window]]] = (
            queue.SimpleQueue()
        )

    def take_asks(self) -> None:
        """Begin to read what is asked for."""
        connection = Connection(os.dup(self._socket.fileno()))
        with contextlib.suppress(EOFError, OSError):
            while True:
                key, slot = connection.recv()
                self._asked.put((key, slot, self._reader.ask(key)))

    def send_windows(self) -> None:
        """Deliver what was read, in the order in which it was asked for."""
        connection = Connection(os.dup(self._socket.fileno()))
        with contextlib.suppress(OSError):
            while True:
                key, slot, read = self._asked.get()
                error = read.exception()
                if error is not None:
                    connection.send((key, _portable(error)))
                else:
                    self._send(connection, key, slot, read.result())
                del read  # let go of before the next one is waited for

    def _send(self, connection: Connection, key: WindowKey, slot: int | None, window: Window) -> None:
        sizes = [len(blob) for blob in window.blobs]
        fits = slot is not None and sum(sizes) <= self._slots.size
        if fits and slot is not None:
            view = self._slots.view(self._arena, slot)
            for blob in window.blobs:
                view[: len(blob)] = blob
                view = view[len(blob) :]
        connection.send((key, (replace(window, blobs=[]), sizes, fits, self._reader.counts())))
        if not fits:
            for blob in window.blobs:
                self._socket.sendall(blob)


# A decoding process ------------------------------------------------------------------------------


class _RemoteReader:
    """The reading process, seen from a decoder, which takes what has come whenever it looks.

    A thread that took it would stop the decoding for Python's lock.
    """

    def __init__(self, end: int, arena: memoryview, slots: _Slots):
        self.counts: dict[str, int] = {}
        self._socket = socket.socket(fileno=end)
        self._connection = Connection(os.dup(end))
        self._asked: dict[WindowKey, _Read] = {}
        self._arena, self._slots = arena, slots
        self._free = list(range(slots.count))

    def ask(self, key: WindowKey) -> "_Read":
        """Have a window read."""
        slot = _Slot(self._free) if self._free else None
        self._connection.send((key, slot.number if slot else None))
        read = self._asked[key] = _Read(self, slot)
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
        window, sizes, in_slot, self.counts = found
        if in_slot and read.slot:
            view = self._slots.view(self._arena, read.slot.number)
            starts = itertools.accumulate(sizes, initial=0)
            blobs = [view[start : start + size] for start, size in zip(starts, sizes, strict=False)]
            read.found = replace(window, blobs=blobs, memory=read.slot)
        else:
            received = [bytearray(size) for size in sizes]
            for blob in received:
                _receive_into(self._socket, blob)
            read.found = replace(window, blobs=received)


class _Slot:
    """A slot in use, until the last that refers to it forgets it."""

    def __init__(self, free: list[int]):
        self.number = free.pop()
        self._free = free

    def __del__(self) -> None:
        self._free.append(self.number)


class _Read:
    """A window that was asked for."""

    def __init__(self, reader: _RemoteReader, slot: _Slot | None):
        self.found: Window | Exception | None = None
        self.slot = slot
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


def _serve_batches(parent: Connection, reader: int, arena: int, memory: int) -> None:
    """Fill batches, job by job, until the parent is gone."""
    setup: tuple[Order, NDArray[np.int64], _Slots] = parent.recv()
    order, bad_rows, slots = setup
    remote = _RemoteReader(reader, memoryview(mmap.mmap(arena, 0)), slots)
    samples, pixels = Samples(Stream(order, remote.ask), bad_rows), mmap.mmap(memory, 0)
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
