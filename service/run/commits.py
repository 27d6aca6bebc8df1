"""A run's commits: the names, the order and the manifests of its checkpoints, without their tensors.

A checkpoint is a folder `checkpoints/<clock>-<token>-<sequence>` in the run directory. The
later of two is the one with the higher token (see storage/lock.py), then the higher sequence number.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol

from pydantic import AfterValidator

from service.collapse.state import Level
from service.documents import Count, Digest, Document, Plain
from service.engine.plain import PARTS, PlainState
from service.errors import DataError
from service.storage import Storage

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
_NAME = re.compile(rf"{FOLDER}/(\d+)-(\d+)-(\d+)/(.+)")


class Readable(Protocol):
    """Where checkpoints are read: a storage, or what several workers read together."""

    address: str

    def get(self, key: str, /) -> bytes:
        """The object; MissingError if there is none."""

    def sizes(self, prefix: str, /) -> dict[str, int]:
        """Bytes of every object whose key starts with `prefix`, by key, sorted."""

    def url(self, key: str, /) -> str:
        """The address of an object, for people."""


@dataclass(frozen=True)
class FileEntry:
    """A file of a checkpoint, as it was committed."""

    bytes: Count
    sha256: Digest


def _check_files(files: dict[str, FileEntry]) -> dict[str, FileEntry]:
    """ValueError unless the files are those of a state's parts."""
    wanted = {f"{part}.pt" for part in PARTS}
    if files.keys() != wanted:
        raise ValueError(f"files are {sorted(files)}, not {sorted(wanted)}")
    return files


class Manifest(Document):
    """What a checkpoint is made of. It is written last: without it there is no checkpoint.

    `digest` is that of all the rest; one that an earlier version wrote has none.
    `metrics` are the last values that the run recorded before it, for people. One that was not `due` at
    its clock, but made on a notice or by time, is resumed from and then forgotten: no rewind goes back
    to it, for a run that nothing disturbed does not have it.
    """

    remedy: ClassVar[str] = "restore it from a copy, or choose another checkpoint"

    version: Literal[2] = 2
    token: Count
    sequence: Count
    files: Annotated[dict[str, FileEntry], AfterValidator(_check_files)]
    state: PlainState
    config: Plain
    metrics: dict[str, float]
    due: bool = True
    digest: Digest | None = None

    def sealed(self) -> "Manifest":
        """The manifest with its digest."""
        return self.model_copy(update={"digest": _digest(self.to_bytes())})

    @classmethod
    def from_bytes(cls, data: bytes, address: str) -> "Manifest":
        """The manifest in the file at `address`; DataError names the file and the remedy."""
        manifest = super().from_bytes(data, address)
        if manifest.digest is not None and manifest.digest != _digest(data):
            raise DataError(f"{address}: not as it was written; {cls.remedy}")
        return manifest

    @property
    def is_healthy(self) -> bool:
        """Whether a rewind may go back to it: it was due, and nothing was wrong with the training."""
        return self.due and self.state.collapse.verdict.level == Level.HEALTHY


def _digest(manifest: bytes) -> str:
    """Of what the file says, however it is laid out, but for the digest itself."""
    content = {key: value for key, value in json.loads(manifest).items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, order=True)
class Name:
    """A checkpoint's place in the order of commits, and the clock that it holds."""

    token: int
    sequence: int
    clock: int

    @property
    def folder(self) -> str:
        """Its key in the run directory."""
        return f"{FOLDER}/{self.clock:012d}-{self.token:06d}-{self.sequence:06d}"


def find(storage: Readable) -> tuple[list[Name], dict[Name, list[str]]]:
    """Committed checkpoints, oldest first, and every checkpoint's keys, even debris."""
    keys: dict[Name, list[str]] = {}
    committed = []
    for key in storage.sizes(FOLDER + "/"):
        match = _NAME.fullmatch(key)
        if match:
            clock, token, sequence = (int(number) for number in match.groups()[:3])
            name = Name(token, sequence, clock)
            keys.setdefault(name, []).append(key)
            if match[4] == MANIFEST:
                committed.append(name)
    return sorted(committed), keys


def read_manifest(storage: Readable, name: Name) -> Manifest:
    """The manifest of a checkpoint; DataError if it is damaged, or of another version or checkpoint."""
    key = f"{name.folder}/{MANIFEST}"
    manifest = Manifest.from_bytes(storage.get(key), storage.url(key))
    if Name(manifest.token, manifest.sequence, manifest.state.clock) != name:
        raise DataError(f"{storage.url(key)}: belongs to another checkpoint; {Manifest.remedy}")
    return manifest


def newest_clock(storage: Storage) -> int:
    """The clock of the newest commit; 0 if there is none."""
    committed, _ = find(storage)
    return committed[-1].clock if committed else 0
