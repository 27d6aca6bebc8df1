"""An exported generator back from its one file, without the rest of the service.

    from service.pretrained import load

    generator, stage = load("generator.safetensors")
    images = generator(torch.randn(8, 128), labels, stage)

Needs torch and safetensors alone. The settings that built the network stand in the file's header.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch

import models
from models import Growing, Shape, Stage
from service.errors import DataError

HEADER = "gan-training-service"
_FIELDS = {"family": str, "settings": dict, "resolution": int, "alpha": int | float}


@dataclass(frozen=True)
class Exported:
    """A generator on the CPU, ready to draw, the stage that it was exported at, and what it is."""

    generator: Growing
    stage: Stage
    family: str
    shape: Shape


def load(path: str | os.PathLike[str]) -> tuple[Growing, Stage]:
    """A generator on the CPU, ready to draw, and the stage that it was exported at.

    Raises DataError where the file is none that `python -m service.export` wrote.
    """
    exported = load_exported(path)
    return exported.generator, exported.stage


def load_exported(path: str | os.PathLike[str]) -> Exported:
    """As `load`, with all that the file's header says."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = _read_header(path, file.metadata())
            # copies lie in memory as torch aligns it, on which the last bit of its sums depends
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise DataError(
            f"{path}: no safetensors file, or damaged ({error}); copy it once more"
        ) from error
    try:
        with torch.device("meta"):  # nothing is drawn that the file would only replace
            generator, _ = models.build(header["family"], **header["settings"])
        shape = models.configure(header["family"], **header["settings"])
        generator.load_state_dict(tensors, assign=True)
        stage = Stage(header["resolution"], header["alpha"])
        generator.check_stage(stage)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f"{path}: its weights do not fit its settings ({error}); use the version of the service"
            " that exported it, or export it anew"
        ) from error
    ready = generator.requires_grad_(False).eval()
    return Exported(ready, stage, header["family"], shape)


def to_bytes(generator: Growing, family: str, shape: Shape, stage: Stage) -> bytes:
    """The file that `load` reads: all weights and buffers, contiguous, and the settings."""
    tensors = {name: tensor.contiguous() for name, tensor in generator.state_dict().items()}
    header = {
        "family": family,
        "settings": dataclasses.asdict(shape),
        "resolution": stage.resolution,
        "alpha": stage.alpha,
    }
    return safetensors.torch.save(tensors, {"format": "pt", HEADER: json.dumps(header)})


def _read_header(path: str | os.PathLike[str], metadata: dict[str, str] | None) -> dict[str, Any]:
    try:
        header = json.loads((metadata or {})[HEADER])
        if all(isinstance(header[name], kind) for name, kind in _FIELDS.items()):
            return header
    except (ValueError, KeyError, TypeError):
        pass
    raise DataError(
        f"{path}: safetensors, but no generator that this service exported, whose settings its"
        f" metadata would hold under {HEADER!r}; make one with python -m service.export"
    )
