"""The search space: settings of the configuration, each with the values that a sweep may give it.

    training.lr_generator: {loguniform: [5.0e-5, 5.0e-3]}
    training.d_steps: {choice: [1, 2]}

`integer` and `uniform` take two bounds as `loguniform` does, `grid` a list as `choice` does. All is
checked against the configuration before anything starts. Knows nothing of Ray.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from service.config import Config, describe, explain, suggest
from service.errors import UsageError

RANGES = ("uniform", "loguniform", "integer")
LISTS = ("choice", "grid")
# What a sweep sets itself, or what would make the scores of its trials incomparable.
OWNED = ("run.dir", "run.images", "scale.", "tracking.", "storage.", "evaluation.", "collapse.action")
_EXAMPLE = "training.lr_generator: {loguniform: [1.0e-4, 1.0e-2]}"


@dataclass(frozen=True)
class Dimension:
    """One setting: for `uniform`, `loguniform` and `integer` its lowest and highest value, both
    possible; for `choice` and `grid` all values."""

    key: str
    kind: str
    values: tuple[Any, ...]

    @property
    def tried(self) -> tuple[Any, ...]:
        """Values that must hold if all are to: lists in full, of ranges the ends and one inside."""
        if self.kind not in ("uniform", "loguniform"):
            return self.values
        low, high = self.values
        return low, high, low + (high - low) / math.e  # no round number, which an integer would take


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
    """The space that the YAML file holds; UsageError names the key, the value and the remedy."""
    try:
        content = yaml.safe_load(Path(file).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--space {file}: cannot be read as YAML: {error}") from error
    return parse_space(content, config, file)


def parse_space(content: Any, config: Config, origin: str) -> Space:
    """The space of a mapping, each value of which must hold in `config`; UsageError naming `origin`."""
    if not content or not isinstance(content, dict):
        raise UsageError(f"{origin}: names no setting to sweep; write lines such as {_EXAMPLE}")
    space = Space(tuple(_dimension(str(key), told, origin) for key, told in content.items()))
    for dimension in space.dimensions:
        for value in dimension.tried:
            apply(config, {dimension.key: value}, f"{origin}: {dimension.key}")
    return space


def apply(config: Config, values: dict[str, Any], origin: str) -> Config:
    """The configuration with these settings; UsageError where they do not hold."""
    content = config.model_dump()
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (content[section] if section else content)[name] = value
    try:
        return Config(**content)
    except ValidationError as error:
        raise UsageError(explain(error, origin)) from error


def encode(value: Any) -> str:
    """A listed value as text: what searches take must be plain, and a phase table is not."""
    return json.dumps(value, default=str)


def decode(space: Space, values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a trial, from what a search chose."""
    lists = {dimension.key for dimension in space.dimensions if dimension.kind in LISTS}
    return {key: json.loads(values[key]) if key in lists else values[key] for key in space.keys}


def _dimension(key: str, told: Any, origin: str) -> Dimension:
    where = f"{origin}: {key}"
    known = [name for name in describe(Config) if not name.startswith(OWNED)]
    if key.startswith(OWNED):
        raise UsageError(f"{where}: cannot be swept: it is the same for all trials, or set for each")
    if any(name.startswith(f"{key}.") for name in known):
        raise UsageError(f"{where}: is a section; write its settings as {key}.NAME, one a line")
    if key not in known:
        raise UsageError(f"{where}: no such setting; {suggest(key, known)}")
    if not isinstance(told, dict) or len(told) != 1 or next(iter(told)) not in RANGES + LISTS:
        kinds = ", ".join(RANGES + LISTS)
        raise UsageError(f"{where}: {told!r}: give one of {kinds}, such as {_EXAMPLE}")
    ((kind, values),) = told.items()
    if not isinstance(values, list) or not values:
        raise UsageError(f"{where}: {kind}: {values!r}: give a list of values")
    for problem in _problems(kind, values):
        raise UsageError(f"{where}: {kind}: {values}: {problem}")
    return Dimension(key, kind, tuple(values))


def _problems(kind: str, values: list[Any]) -> Iterator[str]:
    if kind in LISTS:
        if len({encode(value) for value in values}) < len(values):
            yield "holds a value twice; leave one out"
        return
    # YAML 1.1 reads 5e-5 as text: a number there needs its point
    numbers = [value for value in values if isinstance(value, int | float) and value == value]
    if len(numbers) != 2 or any(isinstance(value, bool) for value in values):
        yield "give two numbers, the lowest and the highest (5.0e-5 has a point in YAML)"
    elif not numbers[0] < numbers[1] < math.inf:
        yield "the first number must be below the second"
    elif kind == "loguniform" and numbers[0] <= 0:
        yield "loguniform starts above 0; take uniform, or a small number"
    elif kind == "integer" and not all(isinstance(value, int) for value in numbers):
        yield "integer goes between whole numbers; take uniform, or round them"
