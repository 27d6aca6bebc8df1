"""From the configuration to a worker's batches: which samples, how they are read and mirrored."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from service.config import Config, Phase
from service.data.dataset import Dataset, Request
from service.data.feeder import Feeders
from service.data.index import NO_LABEL, Index
from service.data.loader import BATCHES_AHEAD, check_prefetch
from service.data.order import Order
from service.engine.curriculum import Cycle
from service.random.draws import Draws

Share = Callable[[int, int], NDArray[np.int64]]


def dataset_of(config: Config, index: Index) -> Dataset:
    """The samples that the run is trained on, in their order."""
    data, rows = config.data, index.rows(held_out=False)
    return Dataset(
        address=data.url,
        index=index,
        order=Order(index, rows, config.run.seed, data.lanes, data.window),
        channels=config.model.channels,
        labelled=config.model.classes is not None,
        max_bad_samples=data.allowed_bad(len(rows)),
        readers=data.readers,
        retry_s=config.storage.retry_s,
        timeout_s=config.storage.timeout_s,
        cache_dir=data.cache_dir,
        cache_bytes=data.cache_bytes,
    )


def label_counts(config: Config, dataset: Dataset) -> NDArray[np.int64] | None:
    """How many images of each class are trained on, if generated images are to follow them."""
    classes = config.model.classes
    if config.training.labels == "even" or not classes:
        return None
    known = dataset.labels(dataset.order.rows)
    return np.bincount(known[known != NO_LABEL], minlength=classes)


def check_memory(config: Config, dataset: Dataset, workers: int) -> None:
    """DataError if the data read ahead exceeds data.prefetch_bytes in some phase."""
    for phase in config.phases:
        limit, size = config.data.prefetch_bytes, image_bytes(config, phase)
        check_prefetch(dataset, workers, limit, phase.batch, size)


def open_feeders(config: Config, dataset: Dataset, workers: int) -> Feeders:
    """Processes that read one worker's share of any phase's batches."""
    largest = max(p.batch // workers * image_bytes(config, p) for p in config.phases)
    return Feeders(dataset, decoders_of(config), BATCHES_AHEAD + 1, largest, workers)


def decoders_of(config: Config) -> int:
    """Decoding processes of a worker; on a CPU one stays ahead of the step, which takes the cores."""
    return config.data.decoders or (config.scale.cpus if config.scale.gpu else 1)


def requests(config: Config, cycles: Iterable[Cycle], share: Share, attempt: int) -> Iterator[Request]:
    """A worker's requests: its `share(first number, count)` of each batch of the cycles."""
    for cycle in cycles:
        for start in cycle.batches():
            numbers = share(start, cycle.span.batch)
            mirrored = flips(config, numbers, attempt) if config.data.flip else None
            yield Request(numbers, cycle.stage.resolution, mirrored, start)


def flips(config: Config, numbers: NDArray[np.int64], attempt: int) -> NDArray[np.bool_]:
    """Which of these samples are mirrored, each with a chance of one half."""
    draws = Draws(config.run.seed, "augmentation", attempt)
    return draws.uniforms(numbers, "flip", 1)[:, 0] < 0.5


def image_bytes(config: Config, phase: Phase) -> int:
    """Bytes of one decoded image."""
    return phase.resolution**2 * config.model.channels
