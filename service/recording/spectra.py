"""The spectra of all weights over the clock: thinned, kept in the run's directory, drawn as one page."""

import bisect
import logging
import math
import threading
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from service.documents import Clock, Count, Document
from service.errors import DataError
from service.recording.pictures import FOLDER
from service.recording.record import Record, Text
from service.recording.spectra_page import Look, draw_page
from service.storage import MissingError, Storage

log = logging.getLogger(__name__)

HISTORY_KEY, PAGE_KEY = "spectra.json", f"{FOLDER}/spectra.png"
MOST_LOOKS = 400
DIGITS = 5

Value = Annotated[float, Field(allow_inf_nan=False)]


class SpectraDocument(Document):
    """Looks as a table: a row of `values` for each (clock, attempt), a column for each name."""

    remedy: ClassVar[str] = "delete it: the page then begins anew"

    version: Literal[1] = 1
    names: tuple[Text, ...]
    looks: tuple[tuple[Clock, Count], ...]
    values: tuple[tuple[Value | None, ...], ...]

    @model_validator(mode="after")
    def _fit(self) -> "SpectraDocument":
        if len(self.values) != len(self.looks) or {len(row) for row in self.values} - {len(self.names)}:
            raise ValueError("its rows and its names do not fit")
        return self


class Spectra:
    """Takes the spectra from records; `draw` keeps and draws what is new.

    Looks of an earlier process of the run stay in front. Beyond `MOST_LOOKS` the two neighbours that lie
    closest become one, of the larger σ₀ and the smaller stable rank: a spike stays.
    """

    def __init__(self, storage: Storage):
        self._storage = storage
        self._lock = threading.Lock()
        self._looks: list[Look] = []
        self._loaded = False
        self._changed = False

    def add(self, record: Record) -> None:
        """Take the spectra of a record, if it has any; a replayed clock is there already."""
        values = _values(record)
        if values:
            with self._lock:
                self._add(Look(record.clock, record.attempt, values))

    def store(self) -> None:
        """Keep all looks in the run's directory."""
        if not self._loaded:
            self._put_in_front()
        with self._lock:
            looks = list(self._looks)
        if looks:
            self._storage.put(HISTORY_KEY, _document(looks).to_bytes())

    def draw(self) -> bytes | None:
        """Keep all looks and draw them; None if there is nothing new, or no curve yet."""
        with self._lock:
            changed, looks = self._changed, list(self._looks)
        if not changed:
            return None
        self.store()
        page = draw_page(looks) if len(looks) >= 2 else None
        if page:
            self._storage.put(PAGE_KEY, page)
        with self._lock:  # only now, for what failed is tried again
            self._changed = self._looks != looks
        return page

    def _add(self, look: Look) -> None:
        """Insert a look at its place, unless its clock is there or has been passed in its attempt."""
        place = bisect.bisect(self._looks, (look.attempt, look.clock), key=_place)
        if place < len(self._looks) and self._looks[place].attempt == look.attempt:
            return
        if place and _place(self._looks[place - 1]) == _place(look):
            return
        self._looks.insert(place, look)
        self._changed = True
        if len(self._looks) > MOST_LOOKS:
            _thin(self._looks)

    def _put_in_front(self) -> None:
        before = self._read()
        with self._lock:
            since, self._looks = self._looks, before
            for look in since:
                self._add(look)
            self._loaded = True

    def _read(self) -> list[Look]:
        """What an earlier process kept; nothing, with a line in the log, if it is damaged."""
        try:
            content = self._storage.get(HISTORY_KEY)
            return _read_looks(SpectraDocument.from_bytes(content, self._storage.url(HISTORY_KEY)))
        except MissingError:
            return []
        except DataError as error:
            log.warning("event=spectra_begin_anew error=%s", error)
            return []


def _values(record: Record) -> dict[str, float]:
    """σ₀ and the stable rank of each weight, as far as they are finite."""
    chosen = {}
    for name, value in record.values.items():
        measure, _, weight = name.partition(".")
        if measure == "spectrum":
            weight, _, order = weight.rpartition(".")
            if order != "0":
                continue
        elif measure != "stable_rank":
            continue
        if math.isfinite(value):
            chosen[f"{measure}.{weight}"] = float(f"{value:.{DIGITS}g}")
    return chosen


def _place(look: Look) -> tuple[int, int]:
    return look.attempt, look.clock


def _thin(looks: list[Look]) -> None:
    """Make one of the two neighbours that span the fewest images.

    Each attempt's first look stays, and so does the last of all.
    """
    spans = [
        (after.clock - before.clock, i)
        for i, (before, look, after) in enumerate(zip(looks, looks[1:], looks[2:], strict=False), 1)
        if before.attempt == look.attempt == after.attempt and i < len(looks) - 2
    ]
    if not spans:  # hundreds of attempts
        del looks[0]
        return
    _, i = min(spans)
    looks[i : i + 2] = [_merged(looks[i], looks[i + 1])]


def _merged(earlier: Look, later: Look) -> Look:
    values = dict(later.values)
    for name, value in earlier.values.items():
        keep = min if name.startswith("stable_rank.") else max
        values[name] = keep(value, values.get(name, value))
    return Look(later.clock, later.attempt, values)


def _document(looks: Sequence[Look]) -> SpectraDocument:
    names = tuple(dict.fromkeys(name for look in looks for name in look.values))
    return SpectraDocument(
        names=names,
        looks=tuple((look.clock, look.attempt) for look in looks),
        values=tuple(tuple(look.values.get(name) for name in names) for look in looks),
    )


def _read_looks(document: SpectraDocument) -> list[Look]:
    looks = []
    for (clock, attempt), row in zip(document.looks, document.values, strict=True):
        values = {n: v for n, v in zip(document.names, row, strict=True) if v is not None}
        looks.append(Look(clock, attempt, values))
    return sorted(looks, key=_place)
