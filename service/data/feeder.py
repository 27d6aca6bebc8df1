"""Processes that read and decode beside the training, and fill batches in memory they share with it.

Threads would not do: whatever holds Python's lock, such as the training loop or a request to S3, stops
all of them at each image. So one process reads a worker's windows, and one or more decode them. Each
ends with the process that uses it, however that ends; `starter.py` starts them.
"""

import contextlib
import itertools
import math
import mmap
import os
import queue
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.data.dataset import BadSamples, BadWindow, Batch, Dataset, Request, Samples, unlabelled
from service.data.order import Order, WindowKey
from service.data.starter import Starter, starter
from service.data.stream import READ_OVER_BYTES, Stream, Window, WindowReader
from service.errors import DataError, ServiceError
from service.storage import StorageError
from service.storage.base import LONGEST_PAUSE_S

READER, DECODER = "gan-reader", "gan-decoder"
"""What `ps` and `top` call the processes."""
SIGN_EVERY_S = 1.0
SILENT_S = 30.0
"""A process that gave no sign for so long has been stopped."""
SPARE_SLOTS = 16
MANY = 4
"""With so many lanes for each decoder, one more or less makes no difference."""
WINDOWS_SHARED = 32
"""So many windows of a lane are kept at most for decoders that share it."""


# The training's side -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """Part of a batch: where the batch begins in shared memory, its shape, and the places to fill."""

    begin: int
    shape: tuple[int, ...]
    places: NDArray[np.intp]
    request: Request


@dataclass(frozen=True)
class _Answer:
    """The rows shown at the job's places, new bad samples, and counts of what was read so far."""

    rows: NDArray[np.int64]
    bad: dict[tuple[int, int], str]
    counts: dict[str, int]


@dataclass(frozen=True)
class Ticket:
    """A batch that is being filled: its clock, and the processes that fill it."""

    begin: int
    shape: tuple[int, ...]
    shares: list[tuple["_Process", NDArray[np.intp]]]
    clock: int


@dataclass(frozen=True)
class Waiting:
    """How the training waits for a batch: how long, and seconds since signs of the processes.

    `silent_s` is that of the one of them that gave none for longest, `idle_s` that of the last request
    to storage, answer or decoded image. A request is for `request_bytes` at most.
    """

    for_s: float
    silent_s: float
    idle_s: float
    request_bytes: int

    def may_end(self, limit_s: float, timeout_s: float) -> bool:
        """Whether it may still end well: all processes live, and something moves, or did until now.

        A request may take `timeout_s`, and as much for each MiB, and then a pause comes before the next.
        """
        request_s = timeout_s * (1 + self.request_bytes / (1 << 20))
        moves = self.idle_s < request_s + max(limit_s, LONGEST_PAUSE_S)
        return self.silent_s < SILENT_S and (moves or self.for_s < limit_s)


class Feeders:
    """One reading process, and decoding ones that each own lanes; together they fill batches.

    One of several `workers` sees so many times fewer lanes. Where they are few, and no multiple of the
    decoders, these take turns at the samples of each, so none has more to do than another.

    `batch_bytes` is the largest batch's size, `batches` how many may be under way. Batches are
    received in the order in which they were started; `receive` raises the processes' errors.
    """

    def __init__(
        self, dataset: Dataset, decoders: int, batches: int, batch_bytes: int, workers: int = 1
    ):
        self.dataset, self.batches, self.batch_bytes = dataset, batches, batch_bytes
        lanes = max(1, dataset.order.lanes // workers)
        self._turns = decoders // math.gcd(lanes, decoders) if lanes < MANY * decoders else 1
        self._ranks: dict[int, int] = {}
        self._turn = 0
        self._bad = BadSamples(dataset)
        self._counts: dict[str, int] = {}
        self._waiting_since: float | None = None
        pairs = [socket.socketpair() for _ in range(decoders)]
        signs = _shared_memory(_Signs.size(decoders))
        self._signs = _Signs(signs)
        memory = _shared_memory(batches * batch_bytes)
        self._memory = mmap.mmap(memory, batches * batch_bytes)
        slots = _Slots.for_windows(dataset)
        self._request_bytes = slots.size
        arenas = [_shared_memory(slots.count * slots.size) for _ in range(decoders)]
        lines = [(end.fileno(), arena) for (end, _), arena in zip(pairs, arenas, strict=True)]
        files = [signs, *itertools.chain(*lines)]
        used = starter()
        self._reader = _Process(used, READER, _serve_windows, files)
        self._reader.send((dataset, slots, self._turns))
        self._decoders = [
            _Process(used, DECODER, _serve_batches, [signs, end.fileno(), arena, memory])
            for (_, end), arena in zip(pairs, arenas, strict=True)
        ]
        for number, decoder in enumerate(self._decoders, 1):
            decoder.send((dataset.order, unlabelled(dataset), slots, number))
        for file in (signs, memory, *arenas):
            os.close(file)
        for pair in pairs:
            for end in pair:
                end.close()

    def start(self, request: Request) -> Ticket:
        """Start to fill a batch; at most `batches` may be under way."""
        shape = (len(request.numbers), request.resolution, request.resolution, self.dataset.channels)
        begin = self._turn * self.batch_bytes
        self._turn = (self._turn + 1) % self.batches
        places, lanes = np.divmod(request.numbers, self.dataset.order.lanes)
        ranks = np.array([self._rank(lane) for lane in lanes.tolist()])
        owners = (ranks * self._turns + places % self._turns) % len(self._decoders)
        shares = []
        for i, decoder in enumerate(self._decoders):
            places = np.flatnonzero(owners == i)
            if len(places):
                decoder.send(_Job(begin, shape, places, request.take(places)))
                shares.append((decoder, places))
        return Ticket(begin, shape, shares, request.clock)

    def receive(self, ticket: Ticket) -> Batch:
        """The batch. Its images stay in shared memory until `batches` others have been started."""
        self._waiting_since = time.monotonic()
        try:
            return self._receive(ticket)
        finally:
            self._waiting_since = None

    def waiting(self) -> Waiting | None:
        """How a thread waits for a batch, asked from another; None if none does."""
        since = self._waiting_since
        if since is None:
            return None
        now = time.monotonic()
        silent_s, idle_s = now - self._signs.oldest(), now - self._signs.moved
        return Waiting(now - since, silent_s, idle_s, self._request_bytes)

    def _receive(self, ticket: Ticket) -> Batch:
        rows = np.empty(ticket.shape[0], np.int64)
        for decoder, places in ticket.shares:
            answer = decoder.receive()
            if isinstance(answer, BadWindow):
                raise self._bad.whole_window(answer)
            if isinstance(answer, Exception):
                raise answer
            rows[places] = answer.rows
            self._bad.add(answer.bad)
            for name, count in answer.counts.items():  # one decoder may be behind another
                self._counts[name] = max(count, self._counts.get(name, 0))
        images = _view(self._memory, ticket.begin, ticket.shape)
        return Batch(images, self.dataset.labels(rows), rows, ticket.clock)

    def counts(self) -> dict[str, int]:
        """Counts of what was read since the processes started; complete after the first batch."""
        return {"bad_samples": len(self._bad)} | self._counts

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        for process in (self._reader, *self._decoders):
            process.end()

    def __enter__(self) -> "Feeders":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rank(self, lane: int) -> int:
        """The lane's number among those that were seen."""
        return self._ranks.setdefault(lane, len(self._ranks))


class _Process:
    """Another process that calls `serve` with a connection and these files, seen from this one."""

    def __init__(self, used: Starter, name: str, serve: Callable[..., None], files: Sequence[int]):
        self._connection, end = Pipe()
        with end:
            self._pid = used.start(name, serve, [end.fileno(), *files])
        self._starter = used

    def send(self, message: Any) -> None:
        """Send a job. If the process has died, `receive` says so."""
        with contextlib.suppress(OSError):
            self._connection.send(message)

    def receive(self) -> Any:
        """The answer to the oldest unanswered job."""
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            code = self._starter.exit_code(self._pid)
            raise RuntimeError(f"a decoding process died (exit code {code})") from None

    def end(self) -> None:
        """End it, whatever it is doing."""
        self._connection.close()
        pid, self._pid = self._pid, None  # which another process may have some day
        self._starter.end(pid)


def _shared_memory(size: int) -> int:
    """A nameless file in memory; it ends with the last process that holds it."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("batches")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, size)
    return file


def _view(memory: mmap.mmap, begin: int, shape: Sequence[int]) -> NDArray[np.uint8]:
    return np.frombuffer(memory, np.uint8, int(np.prod(shape)), begin).reshape(shape)


class _Signs:
    """Shared memory for signs of life: when each process last gave one, and when anything moved.

    Times are those of the machine's monotonic clock, which all processes share.
    """

    def __init__(self, file: int):
        self._times = np.frombuffer(mmap.mmap(file, 0), np.float64)

    @staticmethod
    def size(decoders: int) -> int:
        """Bytes for the reading process and so many decoding ones."""
        return 8 * (2 + decoders)

    def oldest(self) -> float:
        """When the one that is silent for longest gave its last sign; one that starts gave none yet."""
        given = self._times[1:][self._times[1:] > 0]
        return float(given.min()) if len(given) else time.monotonic()

    @property
    def moved(self) -> float:
        """When a process had last read, retried or decoded something."""
        return float(self._times[0])

    def give(self, process: int, done: Callable[[], object]) -> None:
        """Give signs for this process, in a thread, as long as it lives; `done` counts what it does."""
        threading.Thread(target=self._give, args=(process, done), daemon=True).start()

    def _give(self, process: int, done: Callable[[], object]) -> None:
        before = None
        while True:
            now = time.monotonic()
            self._times[1 + process] = now
            if (count := done()) != before:
                before, self._times[0] = count, now
            time.sleep(SIGN_EVERY_S)


# Memory for windows, shared by the processes -------------------------------------------------------


@dataclass(frozen=True)
class _Slots:
    """Shared memory cut into `count` pieces of `size` bytes, each for a window.

    A decoder assigns a slot to each window that it asks for, and takes it back once the window is
    dropped. A window without a slot, or too large for one, travels through the socket.
    """

    count: int
    size: int

    @classmethod
    def for_windows(cls, dataset: Dataset) -> "_Slots":
        """Two slots a lane and some to spare; slots that are never used cost nothing."""
        index, order = dataset.index, dataset.order
        offset, size = index.offset[order.rows], index.size[order.rows].astype(np.int64)
        apart = np.diff(offset)  # start to start: small gaps are read as well
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


def _serve_windows(to_parent: int, signs: int, *files: int) -> None:
    """Read the windows that the decoders request, until the parent ends."""
    parent = Connection(to_parent)
    setup: tuple[Dataset, _Slots, int] = parent.recv()
    dataset, slots, turns = setup
    reader = dataset.open_reader()
    ask = _Shared(reader, turns).ask if turns > 1 else reader.ask
    _Signs(signs).give(0, reader.counts)
    for decoder, arena in zip(files[::2], files[1::2], strict=True):
        end = socket.socket(fileno=decoder)
        line = _Line(end, memoryview(mmap.mmap(arena, 0)), slots, ask, reader.counts)
        for work in (line.take_asks, line.send_windows):
            threading.Thread(target=work, daemon=True).start()
    _await_end(parent)


class _Shared:
    """Reads a window once for all of `decoders` that ask for it.

    If one is far behind the others, or has no sample in a window, its read is forgotten some time.
    """

    def __init__(self, reader: WindowReader, decoders: int):
        self._reader, self._decoders = reader, decoders
        self._lock = threading.Lock()
        self._reads: dict[int, dict[WindowKey, tuple[Future[Window], int]]] = {}

    def ask(self, key: WindowKey) -> Future[Window]:
        """Begin to read a window, or take what was begun."""
        with self._lock:
            reads = self._reads.setdefault(key.lane, {})
            if key not in reads:
                reads[key] = self._reader.ask(key), 0
            read, times = reads.pop(key)
            if times + 1 < self._decoders:
                reads[key] = read, times + 1
            for old in [*reads][:-WINDOWS_SHARED]:
                del reads[old]
            return read


class _Line:
    """The reading process's end of the line to one decoder, which may `ask` for windows.

    `counts` of what was read go with each of them.
    """

    def __init__(
        self,
        end: socket.socket,
        arena: memoryview,
        slots: _Slots,
        ask: Callable[[WindowKey], Future[Window]],
        counts: Callable[[], dict[str, int]],
    ):
        self._socket, self._arena, self._slots = end, arena, slots
        self._ask, self._counts = ask, counts
        self._requests: queue.SimpleQueue[tuple[WindowKey, int | None, Future[Window]]] = (
            queue.SimpleQueue()
        )

    def take_asks(self) -> None:
        """Begin to read the requested windows."""
        connection = Connection(os.dup(self._socket.fileno()))
        with contextlib.suppress(EOFError, OSError):
            while True:
                key, slot = connection.recv()
                self._requests.put((key, slot, self._ask(key)))

    def send_windows(self) -> None:
        """Deliver windows in the order of the requests."""
        connection = Connection(os.dup(self._socket.fileno()))
        with contextlib.suppress(OSError):
            while True:
                key, slot, read = self._requests.get()
                error = read.exception()
                if error is not None:
                    connection.send((key, _portable(error)))
                else:
                    self._send(connection, key, slot, read.result())
                del read  # dropped before waiting for the next one

    def _send(self, connection: Connection, key: WindowKey, slot: int | None, window: Window) -> None:
        sizes = [len(blob) for blob in window.blobs]
        fits = slot is not None and sum(sizes) <= self._slots.size
        if fits and slot is not None:
            view = self._slots.view(self._arena, slot)
            for blob in window.blobs:
                view[: len(blob)] = blob
                view = view[len(blob) :]
        connection.send((key, (replace(window, blobs=[]), sizes, fits, self._counts())))
        if not fits:
            for blob in window.blobs:
                self._socket.sendall(blob)


# A decoding process ------------------------------------------------------------------------------


class _RemoteReader:
    """The reading process, seen from a decoder. The decoder takes finished windows when it has time.

    A thread for this would stop the decoding each time it takes Python's lock.
    """

    def __init__(self, end: int, arena: memoryview, slots: _Slots):
        self.counts: dict[str, int] = {}
        self._socket = socket.socket(fileno=end)
        self._connection = Connection(os.dup(end))
        self._requests: dict[WindowKey, _Read] = {}
        self._arena, self._slots = arena, slots
        self._free = list(range(slots.count))

    def ask(self, key: WindowKey) -> "_Read":
        """Request a window."""
        slot = _Slot(self._free) if self._free else None
        self._connection.send((key, slot.number if slot else None))
        read = self._requests[key] = _Read(self, slot)
        return read

    def take_what_is_there(self) -> None:
        """Take the windows that have come."""
        while self._requests and self._connection.poll():
            self.take_one()

    def take_one(self) -> None:
        """Wait for a window, and take it."""
        key, answer = self._connection.recv()
        read = self._requests.pop(key)
        if isinstance(answer, Exception):
            read.outcome = answer
            return
        window, sizes, in_slot, self.counts = answer
        if in_slot and read.slot:
            view = self._slots.view(self._arena, read.slot.number)
            starts = itertools.accumulate(sizes, initial=0)
            blobs = [view[start : start + size] for start, size in zip(starts, sizes, strict=False)]
            read.outcome = replace(window, blobs=blobs, memory=read.slot)
        else:
            received = [bytearray(size) for size in sizes]
            for blob in received:
                _receive_into(self._socket, blob)
            read.outcome = replace(window, blobs=received)


class _Slot:
    """A slot in use, until nothing refers to it any more."""

    def __init__(self, free: list[int]):
        self.number = free.pop()
        self._free = free

    def __del__(self) -> None:
        self._free.append(self.number)


class _Read:
    """A requested window."""

    def __init__(self, reader: _RemoteReader, slot: _Slot | None):
        self.outcome: Window | Exception | None = None
        self.slot = slot
        self._reader = reader

    def result(self) -> Window:
        """The window; waits until it has come."""
        while self.outcome is None:
            self._reader.take_one()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def _receive_into(end: socket.socket, blob: bytearray) -> None:
    """Fill the blob in as few calls as it takes; each call releases Python's lock."""
    view = memoryview(blob)
    while view:
        count = end.recv_into(view, len(view), socket.MSG_WAITALL)
        if not count:
            raise EOFError
        view = view[count:]


def _serve_batches(to_parent: int, signs: int, reader: int, arena: int, memory: int) -> None:
    """Fill batches, job by job, until the parent ends."""
    parent = Connection(to_parent)
    setup: tuple[Order, NDArray[np.int64], _Slots, int] = parent.recv()
    order, bad_rows, slots, number = setup
    remote = _RemoteReader(reader, memoryview(mmap.mmap(arena, 0)), slots)
    samples, pixels = Samples(Stream(order, remote.ask), bad_rows), mmap.mmap(memory, 0)
    _Signs(signs).give(number, lambda: samples.tried)
    jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
    threading.Thread(target=_await_end, args=(parent, jobs.put), daemon=True).start()
    while True:
        job = jobs.get()
        known = len(samples.bad)
        try:
            remote.take_what_is_there()
            rows = samples.fill(job.request, _view(pixels, job.begin, job.shape), job.places)
            parent.send(_Answer(rows, dict(list(samples.bad.items())[known:]), remote.counts))
        except (EOFError, OSError):
            parent.send(RuntimeError("the reading process died"))
        except Exception as error:
            parent.send(_portable(error))


def _await_end(parent: Connection, take: Callable[[Any], object] = lambda _: None) -> None:
    """Take what the parent sends; when the parent ends, end this process at once."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            take(parent.recv())
    os._exit(0)


def _portable(error: BaseException) -> Exception:
    """The error as a class that every process knows, with its message."""
    for kind in (DataError, StorageError, ServiceError):
        if isinstance(error, kind):
            return kind(str(error))
    if isinstance(error, BadWindow):
        return error
    trace = "".join(traceback.format_exception(error))
    return RuntimeError(f"reading data failed:\n{trace}")
