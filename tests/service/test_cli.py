"""Command lines: what options come of them, what `--help` says, and how the rest is refused."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from service import cli
from service.cli import Count, Options, Positional, Seed, Shown, Text, parse, parse_known
from service.errors import (
    DataError,
    RefusedError,
    ServiceError,
    StorageError,
    TrainingError,
    UsageError,
)


def _words(text: object) -> object:
    return tuple(text.split(",")) if isinstance(text, str) else text


class Paint(Options):
    """Every kind of option."""

    source: Positional[Text]
    """where from"""
    sheet: Annotated[Positional[Literal["grid", "walk"]], Shown("SHEET")] = "grid"
    """what"""
    out: Text
    """where to"""
    rows: Annotated[int, Field(ge=1, le=1000)] = 8
    """of the
    sheet"""
    seed: Seed = 0
    """of all draws"""
    least: Annotated[int, Field(ge=3)] = 3
    """without an upper bound"""
    limit: Count | None = None
    """how many (default: all)"""
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """50% is half"""
    shift: float = 0.0
    """of either sign"""
    colour: Literal["gray", "rgb"] = "rgb"
    """which"""
    names: Annotated[tuple[str, ...], BeforeValidator(_words), Shown("NAME[,NAME…]")] = ()
    """with commas between"""
    scores: Annotated[list[Literal["fd", "kid"]] | None, Shown("SCORE")] = None
    """one or several"""
    log: Path | None = None
    """a file"""
    dry_run: bool = False
    """change nothing"""

    @field_validator("shift")
    @classmethod
    def _is_small(cls, value: float) -> float:
        if not abs(value) < 100:
            raise ValueError("give less than 100")
        return value

    @model_validator(mode="after")
    def _go_together(self) -> "Paint":
        if self.dry_run and self.log:
            raise ValueError("--dry-run and --log: give one of them")
        return self


class Bring(Options):
    """Options with a list of places."""

    services: Positional[list[Literal["s3", "mlflow"]]] = Field(default=[])
    """which (default: all)"""
    jobs: Count = 1
    """at a time"""


class Copy(Options):
    """A list of places of which there must be one."""

    files: Positional[list[str]]
    """which"""


def painted(*arguments: str) -> Paint:
    return parse(Paint, ["source", "--out", "x.png", *arguments], "service.paint")


# What is given ------------------------------------------------------------------------------------


def test_what_is_not_given_has_its_default():
    assert painted() == Paint(source="source", out="x.png")
    assert painted().model_dump() == {
        "source": "source",
        "sheet": "grid",
        "out": "x.png",
        "rows": 8,
        "seed": 0,
        "least": 3,
        "limit": None,
        "share": 0.5,
        "shift": 0.0,
        "colour": "rgb",
        "names": (),
        "scores": None,
        "log": None,
        "dry_run": False,
    }


def test_text_becomes_what_the_field_says():
    options = painted(
        *("walk", "--rows", "3", "--limit", "9", "--share", "1", "--colour", "gray", "--names", "a,b"),
        *("--scores", "kid", "fd", "--log", "a/b"),
    )
    assert (options.sheet, options.rows, options.limit, options.colour) == ("walk", 3, 9, "gray")
    assert (options.share, type(options.share)) == (1.0, float)
    assert options.names == ("a", "b")
    assert options.scores == ["kid", "fd"]
    assert options.log == Path("a/b")


def test_a_flag_without_a_value_is_true_where_it_is_given():
    assert painted("--dry-run").dry_run is True
    assert painted().dry_run is False


def test_a_value_may_follow_an_equals_sign_and_the_last_one_counts():
    assert painted("--rows=3").rows == 3
    assert painted("--rows", "3", "--rows=4").rows == 4


@pytest.mark.parametrize(
    ("arguments", "value"),
    [(["--shift", "-1"], -1), (["--shift", "-0.5"], -0.5), (["--shift=-1e-3"], -1e-3)],
)
def test_a_negative_number_is_a_value(arguments, value):
    assert painted(*arguments).shift == value


@pytest.mark.parametrize(
    "arguments",
    [
        ["a", "walk", "--out", "x", "--rows", "3"],
        ["--out", "x", "--rows", "3", "a", "walk"],
        ["a", "--rows", "3", "walk", "--out", "x"],
    ],
)
def test_places_may_stand_before_between_and_after_flags(arguments):
    assert parse(Paint, arguments, "service.paint") == Paint(source="a", sheet="walk", out="x", rows=3)


@pytest.mark.parametrize(
    ("arguments", "services"),
    [
        ([], []),
        (["s3"], ["s3"]),
        (["s3", "mlflow"], ["s3", "mlflow"]),
        (["s3", "--jobs", "2", "mlflow"], ["s3", "mlflow"]),
        (["--jobs", "2"], []),
    ],
)
def test_a_list_of_places_takes_as_many_as_there_are(arguments, services):
    assert parse(Bring, arguments, "service.bring").services == services


def test_a_list_of_places_without_a_default_takes_one_or_more():
    assert parse(Copy, ["a", "b"], "service.copy").files == ["a", "b"]
    with pytest.raises(UsageError, match="arguments are required: FILES; see"):
        parse(Copy, [], "service.copy")


def test_options_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        painted().rows = 9  # type: ignore[misc]


def test_what_is_none_of_the_options_can_be_left_to_others():
    arguments = ["s3", "--section.key", "5", "--jobs", "3", "--other=1"]
    options, rest = parse_known(Bring, arguments, "service.bring")
    assert options == Bring(services=["s3"], jobs=3)
    assert rest == ["--section.key", "5", "--other=1"]


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rows", "0"], "--rows 0: give a whole number from 1 to 1000"),
        (["--rows", "1001"], "--rows 1001: give a whole number from 1 to 1000"),
        (["--rows", "-3"], "--rows -3: give a whole number from 1 to 1000"),
        (["--rows", "1.5"], "--rows 1.5: give a whole number from 1 to 1000"),
        (["--rows", "many"], "--rows many: give a whole number from 1 to 1000"),
        (["--rows", "9" * 5000], f"--rows {'9' * 5000}: give a whole number from 1 to 1000"),
        (["--least", "2"], "--least 2: give a whole number from 3"),
        (["--limit", "0"], "--limit 0: give a whole number from 1 to 2147483647"),
        (["--seed", "-1"], "--seed -1: give a whole number from 0 to 2147483647"),
        (["--share", "1.1"], "--share 1.1: give a number from 0 to 1"),
        (["--share", "nan"], "--share nan: give a number from 0 to 1"),
        (["--share", "half"], "--share half: give a number from 0 to 1"),
        (["--shift", "far"], "--shift far: give a number"),
        (["--shift", "100"], "--shift 100: give less than 100"),
        (["--shift=-inf"], "--shift -inf: give less than 100"),
        (["--colour", "blue"], "--colour blue: choose gray or rgb"),
        (["--scores", "fd", "fid"], "--scores fid: choose fd or kid"),
        (["jump"], "sheet jump: choose grid or walk"),
        (["--out", " "], "--out: empty; see --help"),
        (["--dry-run", "--log", "x"], "--dry-run and --log: give one of them"),
        # no value, or one too many
        (["--rows"], "argument --rows: expected one argument; see python -m service.paint --help"),
        (
            ["--scores"],
            "argument --scores: expected at least one argument; see python -m service.paint --help",
        ),
        (
            ["--dry-run=yes"],
            "argument --dry-run: ignored explicit argument 'yes'; see python -m service.paint --help",
        ),
        (["walk", "more"], "more: one argument too many; see --help"),
        # flags that there are not; a part of a name is none
        (["--rowz", "3"], "--rowz: no such option; did you mean --rows?"),
        (["--row", "3"], "--row: no such option; did you mean --rows?"),
        (["--dry"], "--dry: no such option; did you mean --dry-run?"),
        (["--dry_run"], "--dry_run: no such option; did you mean --dry-run?"),
        (["--colours=gray"], "--colours: no such option; did you mean --colour?"),
        (["--quite-another", "3"], "--quite-another: no such option; --help lists them all"),
        (["-x"], "-x: no such option; --help lists them all"),
    ],
)
def test_what_does_not_fit_is_named_with_what_to_give(arguments, words):
    with pytest.raises(UsageError) as refused:
        painted(*arguments)
    assert str(refused.value) == words


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [([], "--out"), (["a"], "--out"), (["--out", "x"], "SOURCE")],
)
def test_what_is_missing_is_named(arguments, missing):
    with pytest.raises(UsageError) as refused:
        parse(Paint, arguments, "service.paint")
    see = "see python -m service.paint --help"
    assert str(refused.value) == f"the following arguments are required: {missing}; {see}"


def test_a_place_that_is_empty_is_named():
    with pytest.raises(UsageError, match=r"^source: empty; see --help$"):
        parse(Paint, ["", "--out", "x"], "service.paint")


def test_a_misspelt_flag_is_named_rather_than_the_value_after_it():
    with pytest.raises(UsageError, match=r"^--sead: no such option; did you mean --seed\?$"):
        parse(Paint, ["--sead", "3", "a", "grid", "--out", "x"], "service.paint")


def test_a_value_that_is_none_of_a_list_is_named():
    with pytest.raises(UsageError, match=r"^services s4: choose s3 or mlflow$"):
        parse(Bring, ["s3", "s4"], "service.bring")


# Help ---------------------------------------------------------------------------------------------


def test_help_says_of_every_option_what_it_is_and_its_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as ended:
        parse(Paint, ["--help"], "service.paint", "Paint it.\n\n  As it stands.", "examples:\n  a  b")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: python -m service.paint [-h] --out OUT [--rows N]")
    assert "SOURCE [SHEET]\n\nPaint it.\n\n  As it stands.\n\npositional arguments:\n" in shown
    assert shown.endswith("\n\nexamples:\n  a  b\n")
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    for line in (
        "SOURCE where from",
        "SHEET what (default grid)",
        "--out OUT where to",
        "--rows N of the sheet (default 8)",
        "--seed N of all draws (default 0)",
        "--least N without an upper bound (default 3)",
        "--limit N how many (default: all)",
        "--share X 50% is half (default 0.5)",
        "--shift X of either sign (default 0.0)",
        "--colour {gray,rgb} which (default rgb)",
        "--scores SCORE [SCORE ...]",
        "--log LOG a file",
        "--dry-run change nothing",
    ):
        assert line in lines, line


def test_help_is_given_whatever_else_is_wrong(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(Paint, ["--rows", "0", "--rowz", "--help"], "service.paint")
    assert ended.value.code == 0
    assert "--rows N" in capsys.readouterr().out


# Running ------------------------------------------------------------------------------------------


def given_up(cause: ServiceError) -> TrainingError:
    error = TrainingError("given up")
    error.__cause__ = cause
    return error


def stop(error: BaseException | None) -> None:
    if error:
        raise error


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UsageError("--rows 0: give more"), 2, "error: --rows 0: give more\n"),
        (ServiceError("it fell apart"), 1, "error: it fell apart\n"),
        (DataError("shard-000000.tar: damaged"), 3, "error: shard-000000.tar: damaged\n"),
        (given_up(StorageError("away")), 1, "error: given up\n"),
        (given_up(RefusedError("bad keys")), 3, "error: given up\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_exit_codes_tell_bad_usage_what_lasts_what_may_pass_and_an_interrupt_apart(
    error, code, words, capsys
):
    with pytest.raises(SystemExit) as ended:
        cli.run_command(lambda arguments: stop(error))
    assert ended.value.code == code
    assert capsys.readouterr().err == words


@pytest.mark.parametrize("level", ["info", "Debug", " WARNING ", ""])
def test_a_level_of_logging_is_taken_as_it_is_meant(level, monkeypatch):
    monkeypatch.setenv("LOG_LEVEL", level)
    cli.run_command(lambda arguments: None)


def test_a_level_of_logging_that_does_not_exist_is_bad_usage(monkeypatch, capsys):
    monkeypatch.setenv("LOG_LEVEL", "loud")
    with pytest.raises(SystemExit) as ended:
        cli.run_command(lambda arguments: None)
    assert ended.value.code == 2
    assert "error: LOG_LEVEL=loud: no such level; choose one of CRITICAL" in capsys.readouterr().err


def test_a_command_is_given_its_arguments_and_returns_where_all_is_well(monkeypatch):
    seen = []
    monkeypatch.setattr("sys.argv", ["service.paint", "a", "--out", "x"])
    cli.run_command(seen.append)
    assert seen == [["a", "--out", "x"]]
