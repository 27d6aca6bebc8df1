"""What happens before Ray starts: data and given weights are checked, and the run is locked."""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models import Stage
from service.config import Config
from service.config.idle import idle
from service.data.checks import check_channels, check_labels, check_unlabelled
from service.data.heads import look_at_heads
from service.data.index import Index
from service.data.indexing import find_index, passed_over_in_words
from service.data.tar import Choice
from service.engine.curriculum import curriculum_of
from service.errors import DataError, UsageError
from service.run.directory import RunData, find_same, same_run
from service.run.failure import check_failure
from service.scoring.check import check_evaluation
from service.storage import Storage, open_storage
from service.storage.lock import RunLock
from service.training.feed import check_memory, dataset_of

if TYPE_CHECKING:
    from service.weights.start import Prepared

EARLY_RETRY_S = 10.0


@dataclass(frozen=True)
class RunDir:
    """An open run: its storage, its lock, its key, the data's index, the clock of its end.

    `token` is the lock's when the run was opened.
    """

    storage: Storage
    lock: RunLock
    token: int
    key: str
    index: Index
    end: int


@contextlib.contextmanager
def open_run(config: Config, again: bool = False, patience_s: float = 0) -> Iterator[RunDir]:
    """Check the data, take the run's lock within `patience_s`, and check that it is still the same run.

    A new run keeps a copy of the weights that `run.init` gives it. Raises DataError, StorageError,
    LockError, UsageError if the configuration has changed, and TrainingError if the run has failed for a
    reason that lasts, unless it is to be tried `again`.
    """
    _tell(idle(config), "no effect")
    index = check_data(config)
    data = _data_of(index)
    curriculum = curriculum_of(config)
    early = open_storage(config.run.dir, min(config.storage.retry_s, EARLY_RETRY_S))
    lock = RunLock(early)  # which tries again at each renewal
    token = lock.acquire(patience_s)
    try:
        prepared = check_networks(config, early)
        key = same_run(early, config, data)
        if prepared:
            print(f"run.init {prepared}, listed in {prepared.keep(early)}")
        check_failure(early, config, again)
        storage = open_storage(config.run.dir, config.storage.retry_s, config.storage.timeout_s)
        yield RunDir(storage, lock, token, key, index, config.run.images or curriculum.end)
    finally:
        lock.release()


def check_run(config: Config, index: Index) -> Storage:
    """The storage of `run.dir`; UsageError if something else than this run is there. Makes nothing."""
    storage = open_storage(config.run.dir, min(config.storage.retry_s, EARLY_RETRY_S))
    find_same(storage, config, _data_of(index))
    return storage


def _data_of(index: Index) -> RunData:
    before = tuple(part.fingerprint for part in index.grown)
    return RunData(index.fingerprint(), index.about.classes, before)


def check_networks(config: Config, run_dir: Storage | None = None) -> "Prepared | None":
    """What `run.init` gives to the networks; None without it, or if the run there has its copy.

    Raises what reading it raises, and UsageError if `run.freeze` does not fit the networks.
    """
    if config.run.freeze:
        _check_freeze(config)
    if config.run.init is None:
        return None
    from service.weights import start  # it loads torch, as few runs need before their workers do

    return None if run_dir and start.is_kept(run_dir) else start.prepare(config, config.run.init)


def _check_freeze(config: Config) -> None:
    import torch

    import models
    from service.engine.step import active

    with torch.device("meta"):
        generator, discriminator = models.build(config.model.family, **config.model_settings)
    for span in curriculum_of(config).spans:
        stage = Stage(span.resolution, 0.5 if span.fading else 1.0)
        frozen = config.run.frozen_at(span.start)
        try:
            active(generator, "generator", stage, frozen)
            active(discriminator, "discriminator", stage, frozen)
        except ValueError as error:
            raise UsageError(f"run.freeze: {error}; name other parts") from error


def check_data(config: Config) -> Index:
    """The index of the data; DataError if shards, labels, channels, lanes or memory do not fit.

    What a user should know of the data goes to stderr.
    """
    retry_s = min(config.storage.retry_s, EARLY_RETRY_S)
    shards = open_storage(config.data.url, retry_s)
    place = open_storage(config.data.index_address, retry_s)
    data = config.data

    def check(index: Index) -> None:
        _tell(passed_over_in_words(index.about))
        _check_images(config, index)
        _check_heads(config, shards, index)

    choice = Choice(data.image and data.image.lower().lstrip("."), data.label)
    index = find_index(shards, place, data.held_out, check, choice, data.grown)
    check_memory(config, dataset_of(config, index), max(config.worker_counts))
    if config.evaluation.every_images:
        check_evaluation(config.evaluation, index, config.model.resolution)
    return index


def _tell(lines: Iterable[str], what: str = "left out") -> None:
    for line in lines:
        print(f"{what}: {line}", file=sys.stderr)


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


def _check_heads(config: Config, shards: Storage, index: Index) -> None:
    """DataError if more samples are bad than the run allows, by their labels or by their headers."""
    rows = index.rows(held_out=False)
    allowed = config.data.allowed_bad(len(rows))
    if config.model.classes is not None:
        check_unlabelled(index, rows, allowed)
    if index.about.resolution is not None:
        return  # pack made every image
    resolution = config.model.resolution
    heads = look_at_heads(shards, index, rows, resolution, config.run.seed)
    _tell(heads.in_words(resolution), "note")
    if heads.at_least_bad > allowed:
        raise DataError(
            f"{config.data.url}: at least {heads.at_least_bad} of {len(rows)} images cannot be shown at"
            f" {resolution} px, but data.max_bad_samples allows {allowed}; leave them out of the shards,"
            " lower model.resolution and the last phases, or raise the limit"
        )
