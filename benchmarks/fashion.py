"""What benchmarks on Fashion-MNIST share: its images, samples to compare with them, kept results."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.data.dataset import Batch, Dataset, Request, read
from service.data.index import read_index
from service.data.order import Order
from service.engine.sampler import Sampler
from service.random.draws import Draws
from service.recording.pictures import Pixels
from service.run.best import Trained
from service.storage import open_storage

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Result = TypeVar("Result")

FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package puts its files."""


def finished(kind: type[Result], out: Path, name: str) -> Result | None:
    """What `keep` wrote down of a training, if it has."""
    file = out / f"{name}.json"
    return kind(**json.loads(file.read_text())) if file.exists() else None


def keep(out: Path, name: str, result: "DataclassInstance") -> None:
    """Write down the result of a finished training."""
    (out / f"{name}.json").write_text(json.dumps(dataclasses.asdict(result), indent=2))


def images_of(
    data: Path, resolution: int, channels: int = 1, held_out: bool = True, most: int = 10**6
) -> Batch:
    """The first images, uint8 [n, r, r, channels], in an order of their own, with their labels."""
    index = read_index(open_storage(str(data)))
    rows = index.rows(held_out=held_out)
    dataset = Dataset(str(data), index, Order(index, rows, 0, 1, 64), channels)
    return read(dataset, Request(np.arange(min(most, len(rows))), resolution))


def samples_of(trained: Trained, count: int, counts: NDArray[np.int64] | None = None) -> Pixels:
    """Samples of the EMA, with labels in proportion to `counts`, one for each class.

    Without counts labels take turns, so that each column of a grid shows one class.
    """
    draws, numbers = Draws(0, "benchmark", 0), np.arange(count)
    classes = trained.shape.classes or 1
    labels = numbers % classes if counts is None else draws.labels(numbers, classes, counts)
    latents = draws.latents(numbers, trained.shape.latents)
    sampler = Sampler(trained.generator, trained.shape, trained.stage, seed=0)
    return sampler.draw(latents, labels, noise_seeds=draws.seeds(numbers, "noise"))
