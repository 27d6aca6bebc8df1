"""The search space: settings, each with the values that a sweep may give it.

    training.lr_generator: {loguniform: [5.0e-5, 5.0e-3]}
    training.d_steps: {choice: [1, 2]}

`integer` and `uniform` take two bounds, like `loguniform`; `grid` takes a list, like `choice`. All
values are checked against the configuration before anything starts. Knows nothing of Ray.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.cli import suggest
from service.config import Config
from service.config.describe import describe, explain
from service.config.yaml import load_yaml
from service.errors import UsageError

RANGES = ("uniform", "loguniform", "integer")
LISTS = ("choice", "grid")
# A sweep sets these itself, or different values would make scores incomparable.
OWNED = ("run.dir", "run.images", "scale.", "tracking.", "storage.", "evaluation.", "collapse.action")
_EXAMPLE = "training.lr_generator: {loguniform: [1.0e-4, 1.0e-2]}"


@dataclass(frozen=True)
class Dimension:
    """One setting. `values` are the lowest and highest value of `uniform`, `loguniform` and `integer`,
    both possible, or all values of `choice` and `grid`."""

    key: str
    kind: str
    values: tuple[Any, ...]

    @property
    def tried(self) -> tuple[Any, ...]:
        """Values to check: all of a list, and of a range both ends and one value inside."""
        if self.kind not in ("uniform", "loguniform"):
            return self.values
        low, high = self.values
        return (
            low,
            high,
            low + (high - low) / math.e,
        )  # not a whole number, which an integer setting would accept


@dataclass(frozen=True)
class Space:
    """The dimensions, one or more, in the file's order."""

    dimensions: tuple[Dimension, ...]

    @property
    def points(self) -> int:
        """How many combinations of listed values there are."""
        return math.prod(len(dimension.values) for dimension in self.dimensions)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The settings that are swept."""
        return tuple(dimension.key for dimension in self.dimensions)

    def to_plain(self) -> dict[str, Any]:
        """As in the file."""
        return {d.key: {d.kind: list(d.values)} for d in self.dimensions}


def read_space(file: str, config: Config) -> Space:
    """The space in a YAML file; UsageError names the key, the value and the remedy."""
    return parse_space(load_yaml(Path(file), "--space"), config, file)


def parse_space(content: Any, config: Config, origin: str) -> Space:
    """The space of a mapping; UsageError, naming `origin`, if a value is invalid in `config`."""
    if not content or not isinstance(content, dict):
        raise UsageError(f"{origin}: names no setting to sweep; write lines such as {_EXAMPLE}")
    space = Space(tuple(_dimension(str(key), entry, origin) for key, entry in content.items()))
    for dimension in space.dimensions:
        for value in dimension.tried:
            apply(config, {dimension.key: value}, f"{origin}: {dimension.key}")
    return space


def apply(config: Config, values: dict[str, Any], origin: str) -> Config:
    """The configuration with these settings; UsageError if they are invalid."""
    content = config.model_dump()
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (content[section] if section else content)[name] = value
    try:
        return Config(**content)
    except ValidationError as error:
        raise UsageError(explain(error, origin, Config)) from error


def encode(value: Any) -> str:
    """A listed value as text: searches take only plain values, and a phase table is not one."""
    return json.dumps(value, default=str)


def decode(space: Space, values: dict[str, Any]) -> dict[str, Any]:
    """A trial's settings, decoded from the search's choice."""
    lists = {dimension.key for dimension in space.dimensions if dimension.kind in LISTS}
    return {key: json.loads(values[key]) if key in lists else values[key] for key in space.keys}


def _dimension(key: str, entry: Any, origin: str) -> Dimension:
    where = f"{origin}: {key}"
    known = [name for name in describe(Config) if not name.startswith(OWNED)]
    if key.startswith(OWNED):
        raise UsageError(
            f"{where}: cannot be swept: it must be the same for all trials, or the sweep sets it"
        )
    if any(name.startswith(f"{key}.") for name in known):
        raise UsageError(f"{where}: is a section; write its settings as {key}.NAME, one a line")
    if key not in known:
        raise UsageError(f"{where}: no such setting; {suggest(key, known)}")
    if not isinstance(entry, dict) or len(entry) != 1 or next(iter(entry)) not in RANGES + LISTS:
        kinds = ", ".join(RANGES + LISTS)
        raise UsageError(f"{where}: {entry!r}: give one of {kinds}, such as {_EXAMPLE}")
    ((kind, values),) = entry.items()
    if not isinstance(values, list) or not values:
        raise UsageError(f"{where}: {kind}: {values!r}: give a list of values")
    for problem in _problems(kind, values):
        raise UsageError(f"{where}: {kind}: {values}: {problem}")
    return Dimension(key, kind, tuple(values))


def _problems(kind: str, values: list[Any]) -> Iterator[str]:
    if kind in LISTS:
        if len({encode(value) for value in values}) < len(values):
            yield "lists a value twice; remove one"
        return
    # YAML 1.1 reads 5e-5 as text: a number there needs its point
    numbers = [value for value in values if isinstance(value, int | float) and value == value]
    if len(numbers) != 2 or any(isinstance(value, bool) for value in values):
        yield "give two numbers, the lowest and the highest (YAML needs the point in 5.0e-5)"
    elif not numbers[0] < numbers[1] < math.inf:
        yield "the first number must be below the second"
    elif kind == "loguniform" and numbers[0] <= 0:
        yield "loguniform needs numbers above 0; use uniform, or start at a small number"
    elif kind == "integer" and not all(isinstance(value, int) for value in numbers):
        yield "integer needs whole numbers; use uniform, or round them"
