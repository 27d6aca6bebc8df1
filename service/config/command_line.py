"""The configuration of a command line: a preset or a file, overridden by flags `--section.key VALUE`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from service.cli import Options, make_parser, parse_known, suggest
from service.config.describe import describe, explain
from service.config.former import REPLACED
from service.config.schema import Config
from service.config.yaml import load_preset, preset_names, read_yaml
from service.errors import UsageError

Chosen = TypeVar("Chosen", bound="ConfigOptions")


class _Flags(Config, BaseSettings):
    """The configuration as pydantic-settings reads it: from a preset's values, overridden by flags."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, cli_avoid_json=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read nothing from the environment: a variable DATA there is not the section `data`."""
        return (init_settings,)


class ConfigOptions(Options):
    """The options of every command that takes a configuration."""

    preset: str | None = None
    """A preset by name; see docs/configuration.md."""
    config: str | None = None
    """A YAML file with the same sections, instead of a preset."""
    print_config: bool = False
    """Print the resolved configuration and exit."""


def parse_config(
    options: type[Chosen], arguments: Sequence[str], program: str, description: str, epilog: str = ""
) -> tuple[Chosen, Config]:
    """The command's own options, and the configuration; UsageError with key, value and remedy.

    `program` is the module after `python -m`. `--help` prints and exits 0.
    """
    if "--help" in arguments or "-h" in arguments:
        _print_help(options, program, description, epilog)
        sys.exit(0)
    chosen, flags = parse_known(options, arguments, program)
    if chosen.preset and chosen.config:
        raise UsageError("--preset and --config: give only one of them")
    values: dict[str, Any] = {}
    origin = "the command line"
    if chosen.preset:
        values, origin = load_preset(chosen.preset), f"preset {chosen.preset}"
    elif chosen.config:
        values, origin = read_yaml(Path(chosen.config)), chosen.config
    elif not flags:
        raise UsageError(f"nothing to run: give --preset NAME, one of {', '.join(preset_names())}")
    return chosen, _build(options, flags, values, origin, program)


def _build(
    options: type[ConfigOptions], flags: list[str], values: dict[str, Any], origin: str, program: str
) -> Config:
    """The configuration from a preset's or a file's `values`, overridden by flags."""
    _check_flags(options, flags)
    _check_sections(values, origin)
    source: CliSettingsSource[Any] = CliSettingsSource(
        _Flags,
        cli_prog_name=f"python -m {program}",
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_parse_none_str="null",
        cli_exit_on_error=False,
    )
    try:
        merged = _Flags(_cli_settings_source=source(args=flags), **values)
    except ValidationError as error:
        raise UsageError(explain(error, origin, Config)) from error
    except (SettingsError, ValueError) as error:
        raise UsageError(
            f"the command line cannot be read: {error}; see python -m {program} --help"
        ) from error
    return Config(**merged.model_dump())


def _check_flags(options: type[ConfigOptions], flags: Sequence[str]) -> None:
    """UsageError names the first unknown flag."""
    known = list(describe(Config))
    own = [name.replace("_", "-") for name in options.model_fields]
    for argument in flags:
        flag = argument.partition("=")[0]
        if flag.startswith("--") and flag[2:] not in (*known, *Config.model_fields):
            hint = REPLACED.get(flag[2:].rpartition(".")[2])
            hint = hint or suggest(flag[2:], [*known, *own], "--")
            raise UsageError(f"{flag}: no such setting; {hint}")
        if not flag.startswith("-") and argument is flags[0]:
            raise UsageError(f"{argument}: write a setting as --section.key VALUE")


def _check_sections(values: Mapping[str, Any], origin: str) -> None:
    """UsageError names the first unknown section, which might else set an option of the parser."""
    for name, value in values.items():
        if name not in Config.model_fields:
            hint = suggest(name, list(Config.model_fields), otherwise="see docs/configuration.md")
            raise UsageError(
                f"the configuration from {origin} is invalid:\n"
                f"  {name}: {value!r}: no such section; {hint}"
            )


def _print_help(options: type[ConfigOptions], program: str, description: str, epilog: str) -> None:
    parser = make_parser(options, program, description)
    parser.usage = f"python -m {program} --preset NAME [--section.key VALUE …] [options]"
    print(parser.format_help())
    print(f"presets: {', '.join(preset_names())}\n\nsettings:")
    for key, (kind, default, meaning) in describe(Config).items():
        print(f"  --{key} ({kind}; {default})\n      {meaning}")
    print(f"\n{epilog}".rstrip())
