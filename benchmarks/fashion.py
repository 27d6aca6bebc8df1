"""What benchmarks on Fashion-MNIST share: its held-out images, and samples to compare with them."""

from pathlib import Path

import numpy as np

from service.data.dataset import Dataset, Request, read
from service.data.index import read_index
from service.data.order import Order
from service.engine.sampler import Sampler
from service.random.draws import Draws
from service.recording.pictures import Pixels
from service.run.best import Trained
from service.storage import open_storage

FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package puts its files."""


def images_of(data: Path, resolution: int) -> Pixels:
    """All held-out images, uint8 [n, r, r, 1]."""
    index = read_index(open_storage(str(data)))
    rows = index.rows(held_out=True)
    dataset = Dataset(str(data), index, Order(index, rows, 0, 1, 64), channels=1)
    return read(dataset, Request(np.arange(len(rows)), resolution)).images


def samples_of(trained: Trained, count: int) -> Pixels:
    """Samples of the EMA. Labels take turns, so that each column of a grid shows one class."""
    draws, numbers = Draws(0, "benchmark", 0), np.arange(count)
    labels = numbers % (trained.shape.classes or 1)
    latents = draws.latents(numbers, trained.shape.latents)
    sampler = Sampler(trained.generator, trained.shape, trained.stage, seed=0)
    return sampler.draw(latents, labels, noise_seeds=draws.seeds(numbers, "noise"))
