"""One Ray actor a run that scores new checkpoints beside the training; no worker waits for it."""

import logging
import os
import threading
import time
from typing import Any

import ray

from service.config import Config
from service.errors import ServiceError
from service.recording.record import Record
from service.recording.recorder import RecorderClient
from service.storage import open_storage
from service.training import checkpoint, scores
from service.training.evaluation import Scorer
from service.training.trained import load

log = logging.getLogger(__name__)


class Evaluator:
    """Scores the newest checkpoint that it was told of; one that comes meanwhile waits, and but one.

    Whatever goes wrong with a score is told, and nothing of it stops a training.
    """

    def __init__(self, config: dict[str, Any], recorder: str):
        self._config = Config(**config)
        self._recorder = RecorderClient(ray.get_actor(recorder))
        self._storage = open_storage(self._config.run.dir, self._config.storage.retry_s)
        self._scorer: Scorer | None = None
        self._waiting: checkpoint.Name | None = None
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="evaluator", daemon=True)
        self._thread.start()

    def evaluate(self, name: checkpoint.Name) -> None:
        """Score it as soon as the one under way is done, unless a newer one comes before that."""
        with self._wake:
            if self._waiting:
                log.warning("event=evaluation_skipped checkpoint=%s", self._waiting.folder)
            self._waiting = name
            self._wake.notify()

    def close(self, limit_s: float) -> bool:
        """Finish what is under way or waits, within `limit_s`; whether all was."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(limit_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        niceness = self._config.evaluation.niceness
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._closing)
                name, self._waiting = self._waiting, None
            if name is None:
                return
            try:
                self._score(name)
            except Exception as error:
                kind = "" if isinstance(error, ServiceError) else f"{type(error).__name__}: "
                log.warning("event=evaluation_failed checkpoint=%s error=%s", name.folder, error)
                event = {"action": "unscored", "reason": f"{kind}{error}"}
                self._recorder.write(Record(name.images, time.time(), event=event))

    def _score(self, name: checkpoint.Name) -> None:
        start = time.monotonic()
        if self._scorer is None:
            self._scorer = Scorer(self._config, self._config.evaluation, self._storage)
        trained = load(self._storage.url(name.folder))
        found = self._scorer.score(trained)
        scores.write(self._storage, name, found)
        committed = checkpoint.find(self._storage)[0]
        best = scores.rank(self._storage, committed)[:1] == [name]
        value = found.values[found.by]
        log.info("event=scored checkpoint=%s %s=%.4g best=%s", name.folder, found.by, value, best)
        values = found.values | {"evaluation_seconds": time.monotonic() - start}
        event = {"action": "best", "reason": f"{found.by} {value:.4g}", "checkpoint": trained.address}
        told: dict[str, Any] = {"scores": values} | ({"event": event} if best else {})
        self._recorder.write(Record(name.images, time.time(), trained.attempt, **told))


def start_evaluator(config: Config, recorder: str) -> Any:
    """The run's evaluator as a Ray actor, on whichever node has what it takes.

    `recorder` is that actor's name: with its handle, Ray could not start the evaluator again.
    """
    settings = config.evaluation
    return (
        ray.remote(Evaluator)
        .options(num_cpus=settings.cpus, num_gpus=settings.gpus, max_restarts=-1)
        .remote(config.model_dump(), recorder)
    )
