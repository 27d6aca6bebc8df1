"""What happens before Ray starts: settings are completed, the data is checked, the run is locked."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from service.config import Config
from service.data.index import Index, check_channels, check_labels, check_shards, find_index
from service.engine.curriculum import Curriculum
from service.errors import DataError, UsageError
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


def settle(config: Config) -> Config:
    """Fill in what depends on this machine: absolute paths and precision. UsageError if that fails."""
    run_dir = _absolute("run.dir", config.run.dir)
    data = {"url": _absolute("data.url", config.data.url)}
    if config.data.index_url:
        data["index_url"] = _absolute("data.index_url", config.data.index_url)
    precision = config.training.precision
    if precision == "auto":
        precision = "bf16" if config.scale.gpu or has_bf16_units() else "fp32"
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"dir": run_dir}),
            "data": config.data.model_copy(update=data),
            "training": config.training.model_copy(update={"precision": precision}),
        }
    )


def _absolute(key: str, path: str) -> str:
    if "://" in path:
        return path
    if not os.path.isabs(path) and os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
        raise UsageError(
            f"{key}: {path} is a relative path, which means nothing on a cluster's nodes; give an"
            " absolute path that all nodes share, or an s3:// address"
        )
    return os.path.abspath(os.path.expanduser(path))


def has_bf16_units() -> bool:
    """Whether this CPU multiplies bf16 in hardware."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@contextlib.contextmanager
def open_run(config: Config) -> Iterator[RunDir]:
    """Check the data, take the run's lock, and check that it is still the same run.

    Raises DataError, StorageError, LockError, and UsageError where the configuration has changed.
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
    index = find_index(shards, place, config.data.held_out)
    check_shards(shards, index)
    check_labels(index, config.model.classes)
    check_channels(index, config.model.channels)
    packed = index.about.resolution
    if packed is not None and packed < config.model.resolution:
        raise DataError(
            f"{config.data.url}: packed at {packed} px, but model.resolution is"
            f" {config.model.resolution}; pack larger, or train smaller"
        )
    check_memory(config, dataset_of(config, index), max(config.worker_counts))
    if config.evaluation.every_images:
        check_evaluation(config.evaluation, index)
    return index
