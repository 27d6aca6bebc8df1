"""A run is its directory: `run.json` names the run by a key, its data and its configuration."""

import uuid
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from service.config import Config
from service.config.identity import differences
from service.documents import Document, Plain
from service.errors import UsageError
from service.storage import MissingError, Storage

RUN_KEY, SWEEP_KEY = "run.json", "sweep.json"


class RunDocument(Document):
    """A run: its own key, the data's fingerprint, and the configuration that it started with."""

    remedy: ClassVar[str] = "restore it from a copy, or choose another --run.dir"

    version: Literal[2] = 2
    key: Annotated[str, Field(min_length=1, max_length=64)]
    fingerprint: Annotated[str, Field(min_length=1, max_length=64)]
    config: Plain


def read_run(storage: Storage) -> RunDocument:
    """The run in this directory; MissingError if there is none, DataError if it is damaged."""
    return RunDocument.from_bytes(storage.get(RUN_KEY), storage.url(RUN_KEY))


def same_run(storage: Storage, config: Config, fingerprint: str) -> str:
    """The key of the run in this directory; a new directory gets a new run.

    UsageError if it holds a sweep, or a run with other data or other training settings.
    """
    try:
        before = read_run(storage)
    except MissingError:
        return _new_run(storage, config, fingerprint)
    changed = differences(before.config, config)
    if before.fingerprint != fingerprint:
        changed.append(f"the data: fingerprint {before.fingerprint}, now {fingerprint}")
    if changed:
        raise UsageError(
            f"{storage.address} holds another run; choose another --run.dir, or undo:\n  "
            + "\n  ".join(changed)
        )
    return before.key


def _new_run(storage: Storage, config: Config, fingerprint: str) -> str:
    if storage.sizes(SWEEP_KEY):
        raise UsageError(
            f"{storage.address} holds a sweep; choose another --run.dir, or continue one of its trials/"
        )
    run = RunDocument(key=uuid.uuid4().hex, fingerprint=fingerprint, config=config.model_dump())
    storage.put(RUN_KEY, run.to_bytes())
    return run.key
