"""The configuration as a page for people: `python -m service.config.reference > docs/configuration.md`.

It describes sections, keys and presets from their classes, docstrings and files.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel

from service.cli import Options, parse, run_command
from service.config import Config, Phase
from service.config.amendments import AMENDABLE
from service.config.describe import describe
from service.config.identity import MAY_DIFFER
from service.config.yaml import PRESETS

HEAD = """# Configuration

Written by `make docs` from `service/config/sections.py` and `service/presets/`; a test compares them.

A run takes a preset (`--preset NAME`) or a file with the same sections (`--config FILE`). Flags override
it: `--section.key VALUE`. `null` unsets a value. Lists and `phases` are given as JSON. `--print-config`
shows the result. Nothing is read from the environment, and an unknown key is an error. A key that ends
in `_images` counts real images shown to the discriminator, over all workers; `_s` means seconds and
`_bytes` bytes.

A *schedule* lets a value go with the clock, from 0 to `images`, linear or along half a cosine, and then
stay: `{"from": 0.0002, "to": 0.00005, "images": 20000000, "shape": "cosine"}`.

*Change*: with **resume**, the same run may resume with another value; with **amend**, a rewind may
change it (`collapse.amendments`). Another value of any other key makes another run, with its own
`run.dir`.
"""

_PRESET = re.compile(r"^(?P<name>[\w.-]+):[^#\n]*(?:# ?(?P<purpose>.*))?$", re.MULTILINE)


def main(arguments: Sequence[str]) -> None:
    """Print the page."""
    parse(Options, arguments, "service.config.reference", __doc__ or "")
    sys.stdout.write(page())


def page() -> str:
    """The whole page as Markdown."""
    return "\n".join([HEAD, *_sections(), *_presets()])


def _sections() -> Iterator[str]:
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from _table(name, section, f"{name}.", section.__doc__ or "")
        else:
            yield from _table(name, Phase, "", f"{Phase.__doc__} {field.description}")


def _table(name: str, section: type[BaseModel], prefix: str, introduction: str) -> Iterator[str]:
    yield f"## {name}\n\n{introduction}\n"
    yield "| key | type | default | meaning | change |\n| --- | --- | --- | --- | --- |"
    for key, (kind, default, meaning) in describe(section, prefix).items():
        default = default.removeprefix("default ")
        cells = [
            f"`{key}`",
            kind,
            default if default == "required" else f"`{default}`",
            meaning,
            _change(key),
        ]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _change(key: str) -> str:
    resume, amend = key.startswith(MAY_DIFFER), key in AMENDABLE
    return ", ".join(word for word, holds in (("resume", resume), ("amend", amend)) if holds)


def _presets() -> Iterator[str]:
    yield "## Presets\n"
    for file in sorted(PRESETS.glob("*.yaml")):
        text = file.read_text()
        head = " ".join(line.removeprefix("# ") for line in text.partition("\n\n")[0].splitlines())
        yield f"{_link(file)}: {head}\n\n| preset | for |\n| --- | --- |"
        for preset in _PRESET.finditer(text):
            purpose = (preset["purpose"] or "").replace("|", "\\|")
            yield f"| `{preset['name']}` | {purpose} |"
        yield ""


def _link(file: Path) -> str:
    return f"[`{file.name}`](../service/presets/{file.name})"


if __name__ == "__main__":
    run_command(main)
