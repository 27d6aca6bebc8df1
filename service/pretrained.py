"""Loads an exported generator from its one file, without the rest of the service.

    from service.pretrained import load

    generator, stage = load("generator.safetensors")
    images = generator(torch.randn(8, 128), labels, stage)

It needs only torch and safetensors. The file's header holds the settings of the network.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

import models
from models import Shape, Stage
from models.growth import GrowingGenerator
from service.errors import DataError

HEADER = "gan-training-service"
VERSION = 2
LARGEST_HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class Header:
    """The file's description of its network; ValueError if it is invalid."""

    version: int
    family: str
    settings: dict[str, Any]
    resolution: int
    alpha: float
    classes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version: {self.version!r}, but this service reads version {VERSION}")
        kinds = {
            "version": int,
            "family": str,
            "settings": dict,
            "resolution": int,
            "alpha": int | float,
        }
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"{name}: {value!r} has the wrong type")
        if not isinstance(self.classes, list | tuple) or not all(
            isinstance(name, str) for name in self.classes
        ):
            raise ValueError("classes: not a list of names")
        for name, value in self.settings.items():
            if not isinstance(value, int | str | None) or len(str(value)) > 40:
                raise ValueError(f"settings.{name}: {value!r} is not a network setting")


@dataclass(frozen=True)
class Exported:
    """A generator on the CPU, ready to draw, with its stage at the export, its family and its shape.

    `classes` are the names of the labels, if they have any.
    """

    generator: GrowingGenerator
    stage: Stage
    family: str
    shape: Shape
    classes: tuple[str, ...] = ()


def load(path: str | os.PathLike[str]) -> tuple[GrowingGenerator, Stage]:
    """A generator on the CPU, ready to draw, and its stage at the export.

    DataError if `python -m service.export` did not write the file, or if it is damaged.
    """
    exported = load_exported(path)
    return exported.generator, exported.stage


def load_exported(path: str | os.PathLike[str]) -> Exported:
    """Like `load`, with everything that the header holds."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            # copies are aligned as torch aligns memory: the last bit of a sum depends on it
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise DataError(
            f"{path}: not a safetensors file, or damaged ({error}); copy it again"
        ) from error
    return to_exported(path, tensors, metadata)


def to_exported(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
) -> Exported:
    """What the file's content describes; the tensors become the generator's. DataError as `load`."""
    header = _read_header(path, metadata)
    try:
        shape = models.configure(header.family, **header.settings)
        generator = models.restore_generator(header.family, tensors, **header.settings)
        stage = Stage(header.resolution, header.alpha)
        generator.check_stage(stage)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f"{path}: its weights do not fit its settings ({error}); use the version of the service"
            " that exported it, or export it again"
        ) from error
    return Exported(generator, stage, header.family, shape, tuple(header.classes))


def label_of(text: str, names: Sequence[str], count: int) -> int:
    """The label of a class that is given by its name or its number; ValueError if there is none.

    A number is a label, even where a class's name is another number.
    """
    if text.isascii() and text.isdigit() and int(text[:12]) < count:
        return int(text)
    if text in names[:count]:
        return names.index(text)
    known = f"one of {', '.join(names[:20])}{' …' if len(names) > 20 else ''}, or " if names else ""
    raise ValueError(f"no such class; give {known}a whole number from 0 to {count - 1}")


def to_bytes(
    generator: GrowingGenerator, family: str, shape: Shape, stage: Stage, classes: Sequence[str] = ()
) -> bytes:
    """The file that `load` reads: all weights and buffers, contiguous, the settings and the names."""
    tensors = {name: tensor.contiguous() for name, tensor in generator.state_dict().items()}
    settings = dataclasses.asdict(shape)
    header = Header(VERSION, family, settings, stage.resolution, stage.alpha, classes)
    metadata = {"format": "pt", HEADER: json.dumps(dataclasses.asdict(header))}
    return safetensors.torch.save(tensors, metadata)


def _read_header(path: str | os.PathLike[str], metadata: Mapping[str, str] | None) -> Header:
    text = (metadata or {}).get(HEADER)
    if text is None:
        raise DataError(
            f"{path}: a safetensors file, but not one that this service exported: its metadata has no"
            f" {HEADER!r}; make one with python -m service.export"
        )
    try:
        if len(text) > LARGEST_HEADER_BYTES:
            raise ValueError(f"{len(text)} characters, over the limit of {LARGEST_HEADER_BYTES}")
        content = json.loads(text)
        return Header(**{"version": None} | content)
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path}: its metadata under {HEADER!r} does not describe a generator ({error}); export it"
            " again with python -m service.export"
        ) from error
