"""A configuration in words: what each key means, and what is wrong with an invalid one."""

import json
from collections.abc import Iterator
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from service.address import SecretError
from service.cli import suggest
from service.config.former import REPLACED
from service.config.schedule import Schedule
from service.text import HIDDEN


def describe(model: type[BaseModel], prefix: str = "") -> dict[str, tuple[str, str, str]]:
    """Every key of a configuration, with its type, its default and what it means."""
    rows: dict[str, tuple[str, str, str]] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            rows |= describe(kind, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else f"default {json.dumps(field.default)}"
        rows[prefix + name] = (_type_name(kind), default, field.description or "")
    return rows


def _type_name(kind: Any) -> str:
    """A type as people write it: `int`, `str | null`, `list`."""
    arguments = get_args(kind)
    if get_origin(kind) is Annotated:
        return _type_name(arguments[0])
    if get_origin(kind) in (list, dict):
        return get_origin(kind).__name__
    if arguments:
        return " | ".join(_type_name(argument) for argument in arguments)
    if kind is NoneType:
        return "null"
    if kind is Schedule:
        return "schedule"
    return kind.__name__ if isinstance(kind, type) else str(kind)


def explain(error: ValidationError, origin: str, model: type[BaseModel], prefix: str = "") -> str:
    """Pydantic's errors on a `model` as lines `key: value: what is wrong; remedy`.

    `prefix` is the model's section, such as "training.".
    """
    rows, names = describe(model, prefix), list(_names(model))
    lines = []
    for finding in error.errors():
        parts = [str(part) for part in finding["loc"]]
        if _is_of_the_other_kind(finding, parts):
            continue
        key = prefix + ".".join(part for part in parts if not part.startswith(_KINDS))
        lines.append(_line(finding, key, rows, names, origin))
    return f"the configuration from {origin} is invalid:\n  " + "\n  ".join(dict.fromkeys(lines))


_KINDS = "constrained", "function-after[check(), Schedule]"
"""Of a setting that may be a number or a schedule, pydantic names the kind that it tried."""


def _is_of_the_other_kind(finding: Any, parts: list[str]) -> bool:
    """Whether it says that a schedule is no number, or what is meant as a number no schedule."""
    if any(part.startswith(_KINDS[1]) for part in parts):
        return bool(finding["type"] == "model_type")
    return isinstance(finding["input"], dict) and finding["type"] in ("float_type", "int_type")


def _line(
    finding: Any, key: str, rows: dict[str, tuple[str, str, str]], names: list[str], origin: str
) -> str:
    match finding["type"]:
        case "extra_forbidden":
            name = key.rpartition(".")[2]
            hint = REPLACED.get(name) or suggest(name, names)
            return f"{key}: {finding['input']!r}: no such setting; {hint}"
        case "missing":
            parent = key.rpartition(".")[0]
            place = f"to {parent}" if parent in rows else f"to {origin}"
            return (
                f"{key}: not given; " + (f"set --{key} or " if key in rows else "") + f"add it {place}"
            )
        case "value_error" if not finding["loc"]:
            return str(finding["ctx"]["error"])
    message = finding["msg"].removeprefix("Value error, ")
    secret = isinstance(finding.get("ctx", {}).get("error"), SecretError)
    value = HIDDEN if secret else repr(finding["input"])
    if isinstance(finding["input"], str) and finding["input"].lstrip().startswith("{"):
        message = _json_problem(finding["input"]) or message
    return f"{key}: {value}: {message}{_meaning(key, rows)}"


def _json_problem(text: str) -> str:
    """Why a text is no JSON; empty if it is."""
    try:
        json.loads(text)
    except ValueError as error:
        return f"is no JSON ({error})"
    return ""


def _names(model: type[BaseModel]) -> Iterator[str]:
    """Plain names of all settings, including those in lists of sections."""
    for name, field in model.model_fields.items():
        yield field.alias or name
        for kind in _kinds(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _names(kind)


def _kinds(annotation: Any) -> Iterator[Any]:
    """A type and all that it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from _kinds(part)


def _meaning(key: str, rows: dict[str, tuple[str, str, str]]) -> str:
    if key not in rows:
        return ""
    kind, default, meaning = rows[key]
    return f" ({kind}; {default}. {meaning})"
