"""What a new run starts from: the weights that it took, kept in its directory, and their list.

The driver reads the source once, before Ray starts. Workers, and later starts, read the run's own copy.
"""

import hashlib
import logging
from dataclasses import dataclass
from typing import ClassVar, Literal

import safetensors.torch
import torch

from service.config import Config
from service.documents import Digest, Document
from service.engine.state import TrainState, spectra_of
from service.errors import DataError
from service.run.commits import FileEntry, Readable
from service.storage import Storage
from service.weights import source
from service.weights.fit import Fitted, fit
from service.weights.source import Given

log = logging.getLogger(__name__)

INIT_KEY, TENSORS_KEY = "init.json", "init.safetensors"


class InitDocument(Document):
    """Where a run's first weights come from, which tensors were taken, and which drawn from the seed.

    `digest` is that of the source, `file` the copy of what was taken. Names are `generator/…`, which
    the EMA takes too, and `discriminator/…`.
    """

    remedy: ClassVar[str] = "restore it from a copy, or start anew with another --run.dir"

    version: Literal[1] = 1
    address: str
    digest: Digest
    file: FileEntry
    taken: tuple[str, ...]
    drawn: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """Given weights, and what this run's networks take of them."""

    given: Given
    fitted: Fitted

    def __str__(self) -> str:
        count, drawn = len(self.fitted.taken), len(self.fitted.drawn)
        return f"{self.given.address}: {count} of {count + drawn} tensors are taken, {drawn} are drawn"

    def keep(self, storage: Storage) -> str:
        """Write the copy into the run's directory, and its list last; returns the list's address."""
        given, fitted = self.given, self.fitted
        contiguous = {name: tensor.contiguous() for name, tensor in fitted.taken.items()}
        data = safetensors.torch.save(contiguous)
        storage.put(TENSORS_KEY, data)
        document = InitDocument(
            address=given.address,
            digest=given.digest,
            file=FileEntry(len(data), hashlib.sha256(data).hexdigest()),
            taken=tuple(fitted.taken),
            drawn=fitted.drawn,
        )
        storage.put(INIT_KEY, document.to_bytes())
        return storage.url(INIT_KEY)


def prepare(config: Config, address: str) -> Prepared:
    """What the weights at an address give to this configuration's networks.

    UsageError if there is nothing, or nothing that fits; DataError if it is damaged; StorageError.
    """
    given = source.read(address)
    return Prepared(given, fit(given, config))


def is_kept(storage: Storage) -> bool:
    """Whether the run in this directory has its copy."""
    return INIT_KEY in storage.sizes(INIT_KEY)


@torch.no_grad()
def take(storage: Readable, state: TrainState) -> None:
    """Give the networks of a state at image 0 the weights in the run's directory.

    DataError if they are not those that were kept.
    """
    document = InitDocument.from_bytes(storage.get(INIT_KEY), storage.url(INIT_KEY))
    data = storage.get(TENSORS_KEY)
    if len(data) != document.file.bytes or hashlib.sha256(data).hexdigest() != document.file.sha256:
        raise DataError(f"{storage.url(TENSORS_KEY)}: not as it was written; {document.remedy}")
    takers = {
        "generator": [state.generator.state_dict(), state.ema.state_dict()],
        "discriminator": [state.discriminator.state_dict()],
    }
    for name, tensor in safetensors.torch.load(data).items():
        part, _, weight = name.partition("/")
        for taker in takers[part]:
            taker[weight].copy_(tensor)
    state.spectra = spectra_of(state.generator, state.discriminator)
    log.info(
        "event=init source=%s digest=%s taken=%d drawn=%d list=%s",
        document.address,
        document.digest,
        len(document.taken),
        len(document.drawn),
        storage.url(INIT_KEY),
    )
