"""Checkpoints that exist only when they are committed: files first, the manifest last, verified on load.

A checkpoint is a folder `checkpoints/<images>-<token>-<sequence>` in the run directory. Of two, the
later one is that with the higher token (see lock.py) and then the higher sequence number.
"""

import copy
import hashlib
import io
import itertools
import json
import logging
import math
import pickle
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from service.engine.state import TrainState
from service.errors import DataError
from service.storage import MissingError, Storage
from service.storage.lock import check_token

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
VERSION = 1
_NAME = re.compile(rf"{FOLDER}/(\d+)-(\d+)-(\d+)/(.+)")

Tensors = dict[str, dict[str, Any]]


@dataclass(frozen=True, order=True)
class Name:
    """A checkpoint's place in the order of commits, and the clock that it holds."""

    token: int
    sequence: int
    images: int

    @property
    def folder(self) -> str:
        """Its key in the run directory."""
        return f"{FOLDER}/{self.images:012d}-{self.token:06d}-{self.sequence:06d}"


def find(storage: Storage) -> tuple[list[Name], dict[Name, list[str]]]:
    """Committed checkpoints, oldest first, and the keys of all, committed or debris."""
    keys: dict[Name, list[str]] = {}
    committed = []
    for key in storage.sizes(FOLDER + "/"):
        match = _NAME.fullmatch(key)
        if match:
            images, token, sequence = (int(number) for number in match.groups()[:3])
            name = Name(token, sequence, images)
            keys.setdefault(name, []).append(key)
            if match[4] == MANIFEST:
                committed.append(name)
    return sorted(committed), keys


def read(
    storage: Storage, name: Name, parts: Collection[str] | None = None
) -> tuple[Tensors, dict[str, Any]]:
    """The tensors on the CPU, of all parts or of those named, and the manifest.

    DataError where a file is not what was committed.
    """
    manifest = _read_manifest(storage, f"{name.folder}/{MANIFEST}")
    tensors = {}
    for file, expected in manifest["files"].items():
        if parts is not None and file.removesuffix(".pt") not in parts:
            continue
        key = f"{name.folder}/{file}"
        data = storage.get(key)
        if len(data) != expected["bytes"] or _digest(data) != expected["sha256"]:
            raise DataError(
                f"{storage.url(key)}: not the bytes that were committed; restore it from a copy, or take"
                " another checkpoint"
            )
        try:
            content = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        except (pickle.UnpicklingError, RuntimeError) as error:
            raise DataError(f"{storage.url(key)}: holds more than tensors, or is damaged") from error
        tensors[file.removesuffix(".pt")] = content
    return tensors, manifest


def _read_manifest(storage: Storage, key: str) -> dict[str, Any]:
    try:
        manifest = json.loads(storage.get(key))
        if manifest["version"] == VERSION and manifest["state"] and isinstance(manifest["config"], dict):
            for file in manifest["files"].values():
                int(file["bytes"]), str(file["sha256"])
            return manifest
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{storage.url(key)}: no manifest ({error})") from error
    raise DataError(f"{storage.url(key)}: version {manifest['version']}, expected {VERSION}")


def newest(storage: Storage) -> Iterator[tuple[Name, Tensors, dict[str, Any]]]:
    """Checkpoints that verify, newest first."""
    return verified(storage, reversed(find(storage)[0]))


def verified(storage: Storage, names: Iterable[Name]) -> Iterator[tuple[Name, Tensors, dict[str, Any]]]:
    """Those checkpoints that verify; each that does not is logged and passed over.

    Storage that cannot be read at all is no reason to go back: its StorageError is raised.
    """
    for name in names:
        try:
            yield name, *read(storage, name)
        except (DataError, MissingError) as error:
            log.warning("event=checkpoint_refused name=%s error=%s", name.folder, error)


def resume(storage: Storage, state: TrainState) -> tuple[Name, dict[str, Any]] | None:
    """Load the newest checkpoint that verifies; its name and manifest, or None where there is none.

    DataError where there are some and none verifies: to begin anew would sweep them away.
    """
    for name, tensors, manifest in newest(storage):
        try:
            state.load(tensors, manifest["state"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise DataError(
                f"{storage.url(name.folder)}: holds other networks than this version of the service"
                f" builds; go on with that version ({error})"
            ) from error
        return name, manifest
    damaged = [name.folder for name in find(storage)[0]]
    if damaged:
        raise DataError(
            f"{storage.address}: none of its checkpoints is what was committed ({', '.join(damaged)});"
            " restore one from a copy, or choose another --run.dir"
        )
    return None


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the `newest`, the `best` by score, and always the last healthy one."""

    newest: int
    best: int = 0

    def choose(
        self, committed: Sequence[Name], healthy: Collection[Name], ranked: Sequence[Name]
    ) -> set[Name]:
        """Of the committed, oldest first, those that stay; `ranked` has the best first.

        Of one clock the last counts: a rewind commits its checkpoint again, which pushes out none.
        """
        of_clock = {name.images: name for name in committed}
        latest = sorted(of_clock.values())
        well = [name for name in latest if name in healthy]
        return {*latest[-self.newest :], *well[-1:], *ranked[: self.best]}


class Checkpointer:
    """Writes checkpoints behind the training: one at a time, errors raised at the next call.

    The state is copied into memory that is kept for the next time; all else happens in a thread.
    """

    def __init__(
        self,
        storage: Storage,
        token: int,
        keep: Keep,
        config: dict[str, Any],
        before_commit: Callable[[], None] = lambda: None,
        after_commit: Callable[[Name, dict[str, Any]], None] = lambda name, manifest: None,
        rank: Callable[[Sequence[Name]], Sequence[Name]] = lambda names: (),
    ):
        self.storage, self.token, self.keep = storage, token, keep
        self.config = config
        self.before_commit, self.after_commit, self.rank = before_commit, after_commit, rank
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._buffer: Tensors | None = None
        self._healthy: dict[Name, bool] = {}

    def save(self, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Copy the state, then commit it in the background, once the one before is through.

        `metrics` are written down beside it, for people.
        """
        self.wait()
        self._buffer = copy_to_cpu(state.tensors(), self._buffer)
        plain = copy.deepcopy(state.plain())
        self._pending = self._thread.submit(self._commit, self._buffer, plain, metrics or {})

    def wait(self) -> None:
        """Until the last save is committed; raises what went wrong with it."""
        if self._pending:
            pending, self._pending = self._pending, None
            pending.result()

    def _commit(self, tensors: Tensors, plain: dict[str, Any], metrics: dict[str, float]) -> None:
        present, keys = find(self.storage)
        sequence = max((name.sequence for name in keys), default=0) + 1
        name = Name(self.token, sequence, plain["images"])
        files = {}
        for part, content in tensors.items():
            buffer = io.BytesIO()
            torch.save(content, buffer)
            data = buffer.getvalue()
            self.storage.put(f"{name.folder}/{part}.pt", data)
            files[f"{part}.pt"] = {"bytes": len(data), "sha256": _digest(data)}
        manifest = {
            "version": VERSION,
            "token": self.token,
            "sequence": sequence,
            "files": files,
            "state": plain,
            "config": self.config,
            "metrics": metrics,
        }
        self.before_commit()
        check_token(self.storage, self.token)
        self.storage.put_if(f"{name.folder}/{MANIFEST}", json.dumps(manifest).encode(), None)
        log.info("event=checkpoint images=%d name=%s", name.images, name.folder)
        self._healthy[name] = is_healthy(manifest)
        self.after_commit(name, manifest)
        self._sweep([*present, name], keys, plain["monitor"].get("protected", ()))

    def _sweep(
        self, committed: list[Name], keys: dict[Name, list[str]], protected: Collection[str]
    ) -> None:
        """Delete checkpoints beyond those kept, manifests first, and what was never committed."""
        healthy = [name for name in committed if self._is_healthy(name)]
        kept = self.keep.choose(sorted(committed), healthy, self.rank(committed))
        for name, files in keys.items():
            if name not in kept and name.folder not in protected:
                self.storage.delete(sorted(files, key=lambda key: not key.endswith(MANIFEST)))

    def _is_healthy(self, name: Name) -> bool:
        if name not in self._healthy:
            self._healthy[name] = _was_healthy(self.storage, name)
        return self._healthy[name]


def is_healthy(manifest: dict[str, Any]) -> bool:
    """Whether nothing was wrong with the training when this was saved."""
    return manifest["state"]["monitor"].get("verdict", {}).get("level", "healthy") == "healthy"


def healthy(storage: Storage, images: int) -> Iterator[tuple[Name, Tensors, dict[str, Any]]]:
    """Checkpoints that verify and that one can go back to from `images`: the latest up to it first.

    Those beyond it come last, the earliest first. They were healthy when they were saved, and all their
    numbers are finite: a NaN may be there before it is seen, or come by a flipped bit.
    """
    committed = sorted(find(storage)[0], key=lambda name: (name.images, name))
    early = [name for name in reversed(committed) if name.images <= images]
    late = [name for name in committed if name.images > images]
    well = (name for name in [*early, *late] if _was_healthy(storage, name))
    for name, tensors, manifest in verified(storage, well):
        if is_finite(tensors):
            yield name, tensors, manifest
        else:
            log.warning("event=checkpoint_refused name=%s error=holds NaN or infinity", name.folder)


def _was_healthy(storage: Storage, name: Name) -> bool:
    try:
        return is_healthy(_read_manifest(storage, f"{name.folder}/{MANIFEST}"))
    except (DataError, MissingError):
        return False


def is_finite(value: Any) -> bool:
    """Whether no number of a nested structure is NaN or infinite."""
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
    """A nested structure with every tensor copied to the CPU, into those of `buffer` that fit.

    `buffer` is what an earlier call returned. From a GPU it is page-locked memory, which copies faster.
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
