"""Checkpoints exist once they are committed: files first, the manifest last, verified on load."""

import hashlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, cast

import torch
from torch import nn

from service.engine.plain import PlainState
from service.engine.state import TrainState
from service.errors import DataError
from service.run.commits import MANIFEST, FileEntry, Manifest, Name, Readable, find, read_manifest
from service.run.pins import Pins
from service.run.unpack import unpack
from service.storage import MissingError, Storage
from service.storage.digest import DigestingFile
from service.storage.lock import check_token

log = logging.getLogger(__name__)

SLACK_BYTES = 16 << 20
"""A file is larger than its tensors by names, shapes and small vectors."""

Tensors = dict[str, dict[str, Any]]


def read(
    storage: Readable,
    name: Name,
    parts: Collection[str] | None = None,
    largest: Mapping[str, int] | None = None,
) -> tuple[Tensors, Manifest]:
    """The tensors of all parts, or of those named, on the CPU, and the manifest.

    `largest` are the bytes that a part's tensors may have. DataError if a file is not what was
    committed, or larger.
    """
    manifest = read_manifest(storage, name)
    sizes = storage.sizes(f"{name.folder}/")
    tensors = {}
    for file, expected in manifest.files.items():
        part, key = file.removesuffix(".pt"), f"{name.folder}/{file}"
        if parts is not None and part not in parts:
            continue
        if largest is not None and expected.bytes > largest[part] + SLACK_BYTES:
            raise DataError(
                f"{storage.url(key)}: {expected.bytes} bytes, but its networks have at most"
                f" {largest[part]}; {Manifest.remedy}"
            )
        is_as_large = sizes.get(key, expected.bytes) == expected.bytes  # before it is read
        data = storage.get(key) if is_as_large else b""
        if len(data) != expected.bytes or _digest(data) != expected.sha256:
            raise DataError(f"{storage.url(key)}: not the bytes that were committed; {Manifest.remedy}")
        try:
            tensors[part] = unpack(data)
        except ValueError as error:
            raise DataError(f"{storage.url(key)}: {error}; {Manifest.remedy}") from error
    return tensors, manifest


def largest_bytes(generator: nn.Module, discriminator: nn.Module) -> dict[str, int]:
    """The bytes that each part of a state has at most: Adam keeps two numbers for each weight."""

    def size(network: nn.Module) -> int:
        return sum(t.numel() * t.element_size() for t in network.state_dict().values())

    ours, theirs = size(generator), size(discriminator)
    return {
        "generator": ours,
        "ema": ours,
        "discriminator": theirs,
        "optimizer_g": 2 * ours,
        "optimizer_d": 2 * theirs,
        "spectra": ours + theirs,
    }


def newest(
    storage: Readable, largest: Mapping[str, int] | None = None
) -> Iterator[tuple[Name, Tensors, Manifest]]:
    """Checkpoints that verify, newest first."""
    return verified(storage, reversed(find(storage)[0]), largest)


def verified(
    storage: Readable, names: Iterable[Name], largest: Mapping[str, int] | None = None
) -> Iterator[tuple[Name, Tensors, Manifest]]:
    """The checkpoints that verify; the others are logged and skipped.

    If storage cannot be read at all, its StorageError is raised: that is no reason to go back further.
    """
    for name in names:
        try:
            yield name, *read(storage, name, largest=largest)
        except (DataError, MissingError) as error:
            log.warning("event=checkpoint_refused name=%s error=%s", name.folder, error)


def resume(storage: Readable, state: TrainState) -> tuple[Name, Manifest] | None:
    """Load the newest checkpoint that verifies; its name and manifest, or None if there are none.

    DataError if there are some but none verifies: a new start would delete them.
    """
    for name, tensors, manifest in newest(storage, largest_bytes(state.generator, state.discriminator)):
        try:
            state.load(tensors, manifest.state)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(
                f"{storage.url(name.folder)}: made by a version of the service with other networks;"
                f" use that version ({error})"
            ) from error
        return name, manifest
    damaged = [name.folder for name in find(storage)[0]]
    if damaged:
        raise DataError(
            f"{storage.address}: all its checkpoints are damaged ({', '.join(damaged)});"
            " restore one from a copy, or choose another --run.dir"
        )
    return None


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the `newest`, the `best` by score, and always the last healthy one."""

    newest: int
    best: int = 0

    def choose(
        self,
        committed: Sequence[Name],
        healthy: Collection[Name],
        ranked: Sequence[Name],
        undue: Collection[Name] = (),
    ) -> set[Name]:
        """Which of the committed ones stay; `committed` has the oldest first, `ranked` the best first.

        Only the last commit at each clock counts: a rewind's repeated commit pushes none out. Nor does
        one of the `undue`, which stay only while they are the last.
        """
        of_clock = {name.clock: name for name in committed if name not in undue}
        latest = sorted(of_clock.values())
        well = [name for name in latest if name in healthy]
        return {*latest[-self.newest :], *well[-1:], *ranked[: self.best], *committed[-1:]}


@dataclass(frozen=True)
class Nature:
    """Whether a rewind may go back to a checkpoint, and whether it was due."""

    healthy: bool
    due: bool


class Checkpointer:
    """Writes checkpoints in the background, one at a time; the next call raises any error.

    The state is copied into memory that is reused; everything else happens in a thread.
    """

    def __init__(
        self,
        storage: Storage,
        token: int,
        keep: Keep,
        config: dict[str, Any],
        before_commit: Callable[[], None] = lambda: None,
        after_commit: Callable[[Name, Manifest, float], None] = lambda name, manifest, seconds: None,
        rank: Callable[[Sequence[Name]], Sequence[Name]] = lambda names: (),
    ):
        self.storage, self.token, self.keep = storage, token, keep
        self.config = config
        self.before_commit, self.after_commit, self.rank = before_commit, after_commit, rank
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._buffer: Tensors | None = None
        self._nature: dict[Name, Nature] = {}
        self._pins = Pins(storage)

    def save(self, state: TrainState, metrics: dict[str, float] | None = None, due: bool = True) -> None:
        """Wait for the last commit, copy the state, and commit it in the background.

        `metrics` are stored beside it, for people; `due` says whether the run saves at this clock
        whatever happens to it.
        """
        self.wait()
        started = time.monotonic()
        self._buffer = copy_to_cpu(state.tensors(), self._buffer)
        arguments = (self._buffer, state.plain(), metrics or {}, due, started)
        self._pending = self._thread.submit(self._commit, *arguments)

    def wait(self) -> None:
        """Wait until the last save is committed; raises what went wrong with it."""
        if self._pending:
            pending, self._pending = self._pending, None
            pending.result()

    def _commit(
        self,
        tensors: Tensors,
        plain: PlainState,
        metrics: dict[str, float],
        due: bool,
        started: float,
    ) -> None:
        present, keys = find(self.storage)
        sequence = max((name.sequence for name in keys), default=0) + 1
        name = Name(self.token, sequence, plain.clock)
        files = {}
        for part, content in tensors.items():
            files[f"{part}.pt"] = self._upload(f"{name.folder}/{part}.pt", content)
        manifest = Manifest(
            token=self.token,
            sequence=sequence,
            files=files,
            state=plain,
            config=self.config,
            metrics=metrics,
            due=due,
        ).sealed()
        self.before_commit()
        check_token(self.storage, self.token)
        self.storage.put_if(f"{name.folder}/{MANIFEST}", manifest.to_bytes(), None)
        log.info("event=checkpoint clock=%d name=%s", name.clock, name.folder)
        self._nature[name] = Nature(manifest.is_healthy, manifest.due)
        # A group that came after us may be reading what a sweep would delete.
        check_token(self.storage, self.token)
        self.after_commit(name, manifest, time.monotonic() - started)
        self._sweep([*present, name], keys, plain.collapse.protected)

    def _upload(self, key: str, content: dict[str, Any]) -> FileEntry:
        """Store tensors while they are serialised, without a second copy of them in memory."""
        with self.storage.writer(key) as writer:
            file = DigestingFile(writer)
            try:
                torch.save(content, cast(IO[bytes], file))
            except RuntimeError as error:
                # torch says no more than that something failed
                raise (file.error or error) from error
        return FileEntry(file.count, file.sha256.hexdigest())

    def _sweep(
        self, committed: list[Name], keys: dict[Name, list[str]], protected: Collection[str]
    ) -> None:
        """Delete what is neither kept nor pinned, manifests first, and what was never committed."""
        natures = {name: self._nature_of(name) for name in committed}
        healthy = [name for name in committed if natures[name].healthy]
        undue = [name for name in committed if not natures[name].due]
        kept = self.keep.choose(sorted(committed), healthy, self.rank(committed), undue)
        held = {name.folder for name in kept} | {*protected} | self._pins.folders()
        for name, files in keys.items():
            if name.folder not in held:
                self.storage.delete(sorted(files, key=lambda key: not key.endswith(MANIFEST)))

    def _nature_of(self, name: Name) -> Nature:
        if name not in self._nature:
            self._nature[name] = _nature(self.storage, name)
        return self._nature[name]


def healthy(storage: Readable, clock: int) -> Iterator[tuple[Name, Tensors, Manifest]]:
    """Checkpoints to go back to from `clock`, best first: from it backwards, then later ones.

    They verify, were healthy when they were saved, and hold finite numbers only: a NaN may be there
    before any signal shows it, or come from a flipped bit.
    """
    committed = sorted(find(storage)[0], key=lambda name: (name.clock, name))
    early = [name for name in reversed(committed) if name.clock <= clock]
    late = [name for name in committed if name.clock > clock]
    well = (name for name in [*early, *late] if _nature(storage, name).healthy)
    for name, tensors, manifest in verified(storage, well):
        if is_finite(tensors):
            yield name, tensors, manifest
        else:
            log.warning("event=checkpoint_refused name=%s error=holds NaN or infinity", name.folder)


def _nature(storage: Readable, name: Name) -> Nature:
    try:
        manifest = read_manifest(storage, name)
        return Nature(manifest.is_healthy, manifest.due)
    except (DataError, MissingError):
        return Nature(healthy=False, due=True)


def is_finite(value: Any) -> bool:
    """Whether every number in a nested structure is finite."""
    match value:
        case torch.Tensor():
            return bool(value.isfinite().all())
        case dict():
            return all(is_finite(item) for item in value.values())
        case list() | tuple():
            return all(is_finite(item) for item in value)
        case float():
            return math.isfinite(value)
    return True


def copy_to_cpu(value: Any, buffer: Any = None) -> Any:
    """A nested structure with every tensor copied to the CPU, into tensors of `buffer` where they fit.

    `buffer` is the result of an earlier call. Copies from a GPU use page-locked memory, which is faster.
    """
    match value:
        case torch.Tensor():
            source = value.detach()
            if not (isinstance(buffer, torch.Tensor) and buffer.shape == source.shape):
                buffer = torch.empty_like(source, device="cpu", pin_memory=source.is_cuda)
            return buffer.copy_(source)
        case dict():
            kept = buffer if isinstance(buffer, dict) else {}
            return {key: copy_to_cpu(item, kept.get(key)) for key, item in value.items()}
        case list() | tuple():
            before = buffer if isinstance(buffer, list | tuple) else ()
            pairs = itertools.zip_longest(value, before[: len(value)])
            return type(value)(copy_to_cpu(item, old) for item, old in pairs)
    return value


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
