"""What all commands share: options as typed values, errors in the user's words, and exit codes.

A command declares its options once, as fields of an `Options` class: the field's name is the flag, its
type and bounds are checked, and the docstring below it is what `--help` says.
"""

import argparse
import difflib
import io
import logging
import os
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from service import environment, logs
from service.address import SecretError
from service.errors import ServiceError, UsageError
from service.text import printable

T = TypeVar("T")
Chosen = TypeVar("Chosen", bound="Options")


@dataclass(frozen=True)
class Shown:
    """How an option is shown in `--help`: the word that stands for its value."""

    metavar: str


class _Positional:
    """Marks an option that is named by its place, not by a flag."""


Positional = Annotated[T, _Positional()]
"""`checkpoint: Positional[str]` is given without a flag."""
Text = Annotated[str, Field(pattern=r"\S")]
"""Text that is not empty."""
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Options(BaseModel):
    """A command's options, frozen. Subclasses add fields, each with a docstring for `--help`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def parse(
    options: type[Chosen],
    arguments: Sequence[str],
    program: str,
    description: str = "",
    epilog: str = "",
) -> Chosen:
    """The options on a command line; UsageError names the flag, the value and the remedy.

    `program` is the module after `python -m`. `--help` prints and exits 0.
    """
    values, unknown = _read(options, arguments, program, description, epilog)
    if unknown:  # first, because the value of a misspelt flag may have been read as another option
        raise UsageError(_unknown(options, unknown[0]))
    return _check(options, values)


def parse_known(
    options: type[Chosen],
    arguments: Sequence[str],
    program: str,
    description: str = "",
    epilog: str = "",
) -> tuple[Chosen, list[str]]:
    """Like `parse`, but returns the unknown arguments too."""
    values, unknown = _read(options, arguments, program, description, epilog)
    return _check(options, values), unknown


def split_flags(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """What lies before the first `--`, and what lies behind it: another command's."""
    here = list(arguments).index("--") if "--" in arguments else len(arguments)
    return arguments[:here], arguments[here + 1 :]


def _read(
    options: type[Options], arguments: Sequence[str], program: str, description: str, epilog: str
) -> tuple[dict[str, Any], list[str]]:
    """The text of each option on the command line, and the unknown arguments."""
    parser = make_parser(options, program, description, epilog)
    if any(_is_positional(field) for field in options.model_fields.values()):
        values, unknown = parser.parse_known_intermixed_args(arguments)
    else:
        values, unknown = parser.parse_known_args(arguments)
    return {name: value for name, value in vars(values).items() if value is not None}, unknown


def _check(options: type[Chosen], values: dict[str, Any]) -> Chosen:
    try:
        return options(**values)
    except ValidationError as error:
        raise UsageError(_in_words(options, error)) from error


def make_parser(
    options: type[Options], program: str, description: str = "", epilog: str = ""
) -> argparse.ArgumentParser:
    """An argparse parser for the options. It keeps every value as text; `options` checks them."""
    parser = _Parser(
        prog=f"python -m {program}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, field in options.model_fields.items():
        _add(parser, name, field)
    return parser


class _Parser(argparse.ArgumentParser):
    """Reports errors as the rest of the service does."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def _add(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    kind, settings = _kind(field), _help(field)
    flag = _flag(name)
    if kind is bool:
        parser.add_argument(flag, dest=name, action="store_true", default=None, **settings)
        return
    shown = next((m.metavar for m in field.metadata if isinstance(m, Shown)), None)
    several = get_origin(kind) is list
    if several:
        settings["nargs"] = "*" if _is_positional(field) and not field.is_required() else "+"
        (kind,) = get_args(kind)
    metavar = shown or {int: "N", float: "X"}.get(kind, name.replace("_", "-").upper())
    if get_origin(kind) is Literal and not shown:
        metavar = "{" + ",".join(map(str, get_args(kind))) + "}"
    if _is_positional(field):
        if not field.is_required() and not several:
            settings["nargs"] = "?"
        parser.add_argument(name, metavar=metavar, **settings)
    else:
        parser.add_argument(flag, dest=name, metavar=metavar, required=field.is_required(), **settings)


def _kind(field: FieldInfo) -> Any:
    """The type without None: `int` for `int | None`."""
    kind = field.annotation
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _help(field: FieldInfo) -> dict[str, Any]:
    text = " ".join((field.description or "").split())
    shown = not field.is_required() and field.default is not None and field.default is not False
    if shown and "default" not in text:
        text += f" (default {field.default})"
    return {"help": text.replace("%", "%%")}


def _is_positional(field: FieldInfo) -> bool:
    return any(isinstance(mark, _Positional) for mark in field.metadata)


def _flag(name: str) -> str:
    """The flag of a field; one underscore at its end keeps it apart from a method, as in `json_`."""
    return "--" + name.removesuffix("_").replace("_", "-")


def _unknown(options: type[Options], argument: str) -> str:
    """The error message for an unknown argument."""
    flag = argument.partition("=")[0]
    if not flag.startswith("-"):
        return f"{argument}: one argument too many; see --help"
    known = [_flag(name) for name, field in options.model_fields.items() if not _is_positional(field)]
    return f"{flag}: no such option; {suggest(flag, known)}"


def _in_words(options: type[Options], error: ValidationError) -> str:
    """The first error as `--flag value: what to give`."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return str(first["ctx"]["error"])
    name = str(first["loc"][0])
    field = options.model_fields[name]
    label = name if _is_positional(field) else _flag(name)
    match first["type"]:
        case "string_pattern_mismatch":
            return f"{label}: empty; see --help"
        case "string_unicode":
            remedy = "not valid UTF-8; rename it"
        case "value_error" | "assertion_error":
            remedy = str(first["ctx"]["error"])
            if isinstance(first["ctx"]["error"], SecretError):
                return f"{label}: {remedy}"
        case "literal_error":
            remedy = f"choose {first['ctx']['expected']}".replace("'", "")
        case _:
            remedy = f"give {_range(field)}"
    return f"{label} {first['input']}: {remedy}"


def _range(field: FieldInfo) -> str:
    """The allowed range of a number, in words."""
    marks = field.metadata + [m for part in get_args(field.annotation) for m in _marks(part)]
    low = next((mark.ge for mark in marks if isinstance(mark, Ge)), None)
    high = next((mark.le for mark in marks if isinstance(mark, Le)), None)
    kind = "a whole number" if _kind(field) is int else "a number"
    if low is None:
        return kind
    return f"{kind} from {low}" + ("" if high is None else f" to {high}")


def _marks(part: Any) -> list[Any]:
    marks = part.__metadata__ if get_origin(part) is Annotated else ()
    return [
        inner for mark in marks for inner in (mark.metadata if isinstance(mark, FieldInfo) else [mark])
    ]


def suggest(
    key: str, known: Sequence[str], prefix: str = "", otherwise: str = "--help lists them all"
) -> str:
    """The known name that is closest, as advice; `otherwise` if none is close."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {prefix}{close[0]}?" if close else otherwise


def _log() -> None:
    """Log at LOG_LEVEL; UsageError if there is no such level."""
    handler = logging.StreamHandler()
    handler.setFormatter(logs.PlainLines("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=environment.log_level(), handlers=[handler])


class Exit(IntEnum):
    """A command's exit code: FAILED may pass with another try, LASTING will not until it is mended."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    LASTING = 3
    INTERRUPTED = 130


def exit_code(error: ServiceError) -> Exit:
    """What a command exits with after this error; a run that was given up lasts if its cause does."""
    if isinstance(error, UsageError):
        return Exit.USAGE
    reasons = (error, error.__cause__)
    lasts = any(isinstance(reason, ServiceError) and reason.lasts for reason in reasons)
    return Exit.LASTING if lasts else Exit.FAILED


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Run a command, and exit with the code that says how it ended."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may not be valid UTF-8
    try:
        _log()
        main(sys.argv[1:])
    except ServiceError as error:
        lines = map(printable, str(error).split("\n"))
        print("error:", "\n".join(lines), file=sys.stderr)
        sys.exit(exit_code(error))
    except BrokenPipeError:  # whoever read the output has had enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.FAILED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(Exit.INTERRUPTED)
