"""What happens before Ray starts: the data is checked and the run is locked."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from service.config import Config
from service.data.index import Index, check_channels, check_labels, check_shards, find_index
from service.engine.curriculum import Curriculum
from service.errors import DataError
from service.run.directory import same_run
from service.scoring.scorer import check_evaluation
from service.storage import Storage, open_storage
from service.storage.lock import RunLock
from service.training.feed import check_memory, dataset_of

EARLY_RETRY_S = 10.0


@dataclass(frozen=True)
class RunDir:
    """An open run: its storage, the lock's token, its key, the data's index, the clock of its end."""

    storage: Storage
    token: int
    key: str
    index: Index
    end: int


@contextlib.contextmanager
def open_run(config: Config) -> Iterator[RunDir]:
    """Check the data, take the run's lock, and check that it is still the same run.

    Raises DataError, StorageError, LockError, and UsageError if the configuration has changed.
    """
    index = check_data(config)
    curriculum = Curriculum(config.phases, config.training.d_steps)
    storage = open_storage(config.run.dir, min(config.storage.retry_s, EARLY_RETRY_S))
    lock = RunLock(storage)
    token = lock.acquire()
    try:
        key = same_run(storage, config, index.fingerprint())
        yield RunDir(storage, token, key, index, config.run.images or curriculum.end)
    finally:
        lock.release()


def check_data(config: Config) -> Index:
    """The index of the data; DataError if shards, labels, channels, lanes or memory do not fit."""
    retry_s = min(config.storage.retry_s, EARLY_RETRY_S)
    shards = open_storage(config.data.url, retry_s)
    place = open_storage(config.data.index_address, retry_s)

    def check(index: Index) -> None:
        check_shards(shards, index)
        _check_images(config, index)

    index = find_index(shards, place, config.data.held_out, check)
    check_memory(config, dataset_of(config, index), max(config.worker_counts))
    if config.evaluation.every_images:
        check_evaluation(config.evaluation, index)
    return index


def _check_images(config: Config, index: Index) -> None:
    """DataError if the images' labels, channels or size do not fit the model."""
    check_labels(index, config.model.classes)
    check_channels(index, config.model.channels)
    packed = index.about.resolution
    if packed is not None and packed < config.model.resolution:
        raise DataError(
            f"{config.data.url}: packed at {packed} px, but model.resolution is"
            f" {config.model.resolution}; pack at a higher resolution, or lower model.resolution"
        )
