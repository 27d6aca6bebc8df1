"""A run is its directory: `run.json` names the run by a key, its data and its configuration."""

import sys
import uuid
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from service.config import Config
from service.config.identity import differences
from service.documents import Clock, Document, Plain
from service.errors import UsageError
from service.storage import MissingError, Storage

RUN_KEY, SWEEP_KEY = "run.json", "sweep.json"


Fingerprint = Annotated[str, Field(min_length=1, max_length=64)]


@dataclass(frozen=True)
class RunData:
    """The data of a run: its fingerprint, the classes' names by label, and what it grew from."""

    fingerprint: str
    classes: tuple[str, ...] = ()
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class Growth:
    """From this clock on, a run was trained on more data than that of this fingerprint."""

    clock: Clock
    fingerprint: Fingerprint


class RunDocument(Document):
    """A run: its own key, its data, and the configuration that it started with.

    `classes` are the names of the labels; `grown` is the data that it was trained on before, oldest
    first.
    """

    remedy: ClassVar[str] = "restore it from a copy, or choose another --run.dir"

    version: Literal[2] = 2
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]  # it names files of the recorder
    fingerprint: Fingerprint
    config: Plain
    classes: tuple[str, ...] = ()
    grown: tuple[Growth, ...] = ()


def read_run(storage: Storage) -> RunDocument:
    """The run in this directory; MissingError if there is none, DataError if it is damaged."""
    return RunDocument.from_bytes(storage.get(RUN_KEY), storage.url(RUN_KEY))


def same_run(storage: Storage, config: Config, data: RunData) -> str:
    """The key of the run in this directory; a new directory gets a new run.

    With `data.grown`, a run goes on with data that grew from its own, and the clock of the change is
    written down. Raises what `find_same` raises.
    """
    before = find_same(storage, config, data)
    if before is None:
        return _new_run(storage, config, data)
    _renew(storage, before, data)
    return before.key


def find_same(storage: Storage, config: Config, data: RunData) -> RunDocument | None:
    """The run in this directory, None if there is none.

    UsageError if it holds a sweep, or a run with other data or other training settings.
    """
    try:
        before = read_run(storage)
    except MissingError:
        if storage.sizes(SWEEP_KEY):
            raise UsageError(
                f"{storage.address} holds a sweep; choose another --run.dir, or continue one of its"
                " trials/"
            ) from None
        return None
    changed = differences(before.config, config)
    grew = before.fingerprint in data.before
    if before.fingerprint != data.fingerprint and not (grew and config.data.grown):
        changed.append(
            f"the data: fingerprint {before.fingerprint}, now {data.fingerprint}"
            + (" (it grew: set data.grown to true to go on with all of it)" if grew else "")
        )
    if changed:
        raise UsageError(
            f"{storage.address} holds another run; choose another --run.dir, or undo:\n  "
            + "\n  ".join(changed)
        )
    return before


def _renew(storage: Storage, before: RunDocument, data: RunData) -> None:
    """Write down data that grew, and names that are new."""
    classes = data.classes or before.classes
    grown = before.grown
    if before.fingerprint != data.fingerprint:
        from service.run.commits import newest_clock

        clock = newest_clock(storage)
        grown = (*grown, Growth(clock, before.fingerprint))
        print(f"note: the data grew; the run sees all of it from clock {clock:,} on", file=sys.stderr)
    values = {"fingerprint": data.fingerprint, "classes": classes, "grown": grown}
    after = before.model_copy(update=values)
    if after != before:
        storage.put(RUN_KEY, after.to_bytes())


def _new_run(storage: Storage, config: Config, data: RunData) -> str:
    run = RunDocument(
        key=uuid.uuid4().hex,
        fingerprint=data.fingerprint,
        config=config.model_dump(),
        classes=data.classes,
    )
    storage.put(RUN_KEY, run.to_bytes())
    return run.key
