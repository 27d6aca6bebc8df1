"""A run is its directory: what it is made of is settled, checked and locked here, before Ray starts."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from service.config import Config, Evaluation, differences
from service.data.index import Index, check_channels, check_labels, check_shards, find_index
from service.engine.curriculum import Curriculum
from service.errors import DataError, UsageError
from service.metrics import scores
from service.metrics.features import open_features
from service.recording.mlflow import check_no_credentials
from service.storage import MissingError, Storage, is_s3, open_storage
from service.storage.lock import RunLock
from service.training.feed import check_memory, source_of

RUN_KEY, SWEEP_KEY = "run.json", "sweep.json"
EARLY_RETRY_S = 10.0
_RUN_FIELDS = {"key": str, "fingerprint": str, "config": dict}


@dataclass(frozen=True)
class RunDir:
    """An open run: its storage, the lock's token, a key of its own, and the data's index."""

    storage: Storage
    token: int
    key: str
    index: Index
    end: int


def settle(config: Config) -> Config:
    """Fill in what depends on this machine: absolute paths and the precision; UsageError if it can't."""
    check_no_credentials("tracking.uri", config.tracking.uri or "")
    if is_s3(config.run.dir) and not config.tracking.uri:
        raise UsageError(
            f"tracking.uri: not given, and run.dir {config.run.dir} can hold no MLflow database;"
            " give the address of an MLflow server"
        )
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
            f"{key}: {path} is relative, which names nothing on a cluster's nodes; give an absolute"
            " path that all nodes share, or an s3:// address"
        )
    return os.path.abspath(os.path.expanduser(path))


def has_bf16_units() -> bool:
    """Whether this CPU multiplies bf16 in hardware."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@contextlib.contextmanager
def open_run(config: Config) -> Iterator[RunDir]:
    """Check the data, take the run's lock, and check that it is the run that was started before.

    Raises DataError, StorageError, LockError, and UsageError where the configuration has changed.
    """
    index = check_data(config)
    curriculum = Curriculum(config.phases, config.training.d_steps)
    storage = open_storage(config.run.dir, min(config.storage.retry_s, EARLY_RETRY_S))
    lock = RunLock(storage)
    token = lock.acquire()
    try:
        key = _same_run(storage, config, index)
        yield RunDir(storage, token, key, index, config.run.images or curriculum.end)
    finally:
        lock.release()


def check_data(config: Config) -> Index:
    """The index of the data, once shards, labels, channels and lanes are seen to fit the run."""
    retry_s = min(config.storage.retry_s, EARLY_RETRY_S)
    shards = open_storage(config.data.url, retry_s)
    place = open_storage(config.data.index_address, retry_s)
    index = find_index(shards, place, config.data.held_out)
    check_shards(shards, index)
    check_labels(index, config.model.classes)
    check_channels(index, config.model.channels)
    packed = index.about.get("resolution")
    if packed is not None and packed < config.model.resolution:
        raise DataError(
            f"{config.data.url}: packed at {packed} px, but model.resolution is"
            f" {config.model.resolution}; pack larger, or train smaller"
        )
    check_memory(config, source_of(config, index), max(config.worker_counts))
    if config.evaluation.every_images:
        check_evaluation(config.evaluation, index)
        if config.evaluation.best not in {*config.evaluation.scores} & {*scores.RANKING}:
            raise UsageError(
                f"evaluation.best: {config.evaluation.best}, which is none of evaluation.scores"
                f" {', '.join(config.evaluation.scores)} that ranks checkpoints:"
                f" {', '.join(scores.RANKING)}"
            )
    return index


def check_evaluation(settings: Evaluation, index: Index) -> None:
    """UsageError where the scores that are wanted cannot be had: unknown, or without what they need."""
    scores.check_scores(settings.scores)
    if not len(index.rows(held_out=True)):
        raise UsageError(
            "evaluation: scores compare with held-out images, of which the index has none; make it anew"
            " with a data.held_out above 0, or set evaluation.every_images to null"
        )
    if scores.need_features(settings.scores):
        open_features(settings.features, settings.weights or "")


def _same_run(storage: Storage, config: Config, index: Index) -> str:
    """The key of this run: of a new one, or of the same that was started here before."""
    fingerprint = index.fingerprint()
    try:
        before = read_run(storage)
    except MissingError:
        if storage.sizes(SWEEP_KEY):
            raise UsageError(
                f"{storage.address} holds a sweep; choose another --run.dir, or go on with one of its"
                " trials/"
            ) from None
        key = uuid.uuid4().hex
        content = {"key": key, "fingerprint": fingerprint, "config": config.model_dump()}
        storage.put(RUN_KEY, json.dumps(content, indent=2).encode())
        return key
    changed = differences(before["config"], config)
    if before["fingerprint"] != fingerprint:
        changed.append(f"the data: fingerprint {before['fingerprint']}, now {fingerprint}")
    if changed:
        raise UsageError(
            f"{storage.address} holds another run; choose another --run.dir, or undo:\n  "
            + "\n  ".join(changed)
        )
    return before["key"]


def read_run(storage: Storage) -> dict[str, Any]:
    """Key, fingerprint and configuration of the run in this directory; MissingError where none is."""
    data = storage.get(RUN_KEY)
    try:
        run = json.loads(data)
        if all(isinstance(run[name], kind) for name, kind in _RUN_FIELDS.items()):
            return run
    except (ValueError, KeyError, TypeError):
        pass
    raise DataError(
        f"{storage.url(RUN_KEY)}: damaged; restore it from a copy, or choose another --run.dir"
    )
