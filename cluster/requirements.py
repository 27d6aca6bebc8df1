"""The project's requirements, a line each, for an image that installs them in a layer before the code.

`python requirements.py pyproject.toml [EXTRA …]`; needs Python's own library alone.
"""

import sys
import tomllib
from pathlib import Path


def requirements(project: Path, extras: list[str]) -> list[str]:
    """What the project and these extras of it need; KeyError names an extra that it has not."""
    content = tomllib.loads(project.read_text())["project"]
    optional = content["optional-dependencies"]
    return [*content["dependencies"], *(line for extra in extras for line in optional[extra])]


if __name__ == "__main__":
    print(*requirements(Path(sys.argv[1]), sys.argv[2:]), sep="\n")
