"""Write the versions that `make` and the image install, with hashes: `make lock`.

requirements-torch.txt has torch, whose build differs by machine, and what torch alone brings, by
version. requirements.txt has the rest of what the image needs, requirements-dev.txt the rest of what
`make` needs. All three hold for Python 3.11 and newer.
"""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
TORCH = "torch==2.13.0"
# What the image has; `service.sweep` runs on its nodes, too.
IMAGE_EXTRAS = ("export", "metrics", "sweep")
# Each of these comes with a build of torch for some CUDA.
CUDA = re.compile(r"nvidia-(?!ml-py$)|cuda-|triton$")


@dataclass(frozen=True)
class Pin:
    """One package of a lock: its version and marker, its hashes, and what asks for it."""

    name: str
    requirement: str
    hashes: tuple[str, ...]
    wanted_by: frozenset[str]

    def __str__(self) -> str:
        return " \\\n    ".join([self.requirement, *(f"--hash={value}" for value in self.hashes)])


def compile_pins(extras: tuple[str, ...], constraints: list[str]) -> list[Pin]:
    """The newest versions of the project's dependencies that fit together and fit the constraints."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(constraints))
        file.flush()
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--no-header"]
        command += ["--python-version", "3.11", "--generate-hashes", "--annotation-style", "split"]
        command += [
            "--constraint",
            file.name,
            *(f"--extra={extra}" for extra in extras),
            "pyproject.toml",
        ]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return read_pins(done.stdout)


def read_pins(text: str) -> list[Pin]:
    """The packages of a lock that uv wrote, or that `render` did."""
    pins = []
    for entry in re.split(r"\n(?=[A-Za-z0-9])", text):
        body, _, comment = entry.partition("# via")
        if "==" not in body:
            continue
        requirement = body.partition(" \\\n")[0].strip()
        name = re.split(r"[=\[ ]", requirement)[0]
        # a file of constraints wants nothing; a package is one word, perhaps with its extras
        reasons = [line.strip(" #") for line in comment.splitlines()]
        wanted_by = frozenset(re.split(r"[\[ ]", reason)[0] for reason in reasons if reason) - {"-c"}
        pins.append(Pin(name, requirement, tuple(re.findall(r"--hash=(\S+)", body)), wanted_by))
    return pins


def torch_names(pins: list[Pin]) -> set[str]:
    """Torch and what it alone brings."""
    torch = {"torch"}
    while more := {pin.name for pin in pins if pin.wanted_by and pin.wanted_by <= torch} - torch:
        torch |= more
    return torch


def main() -> None:
    """Write the three files."""
    dev = compile_pins(("dev",), [TORCH])
    image = compile_pins(IMAGE_EXTRAS, [pin.requirement for pin in dev])
    torch = torch_names(image)
    files = {
        "requirements-torch.txt": [
            pin.requirement for pin in image if pin.name in torch and not CUDA.match(pin.name)
        ],
        "requirements.txt": [str(pin) for pin in image if pin.name not in torch],
        "requirements-dev.txt": [str(pin) for pin in dev if pin.name not in torch],
    }
    for name, lines in files.items():
        (ROOT / name).write_text("\n".join(["# Written by `make lock`.", *lines, ""]))
        print(f"{name}: {len(lines)} packages")


if __name__ == "__main__":
    main()
