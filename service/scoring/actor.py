"""One Ray actor a run that scores new checkpoints beside the training; no worker waits for it."""

import functools
import importlib
import logging
import os
import threading
import time
from socket import gethostname
from typing import TYPE_CHECKING, Any

import ray

from service import logs
from service.config import Config
from service.errors import ServiceError
from service.recording.record import Event, EventAction, Record
from service.recording.recorder import RecorderClient
from service.run import commits, ranking
from service.storage import open_storage

if TYPE_CHECKING:
    from service.scoring.scorer import Scorer

log = logging.getLogger(__name__)

ANSWER_LIMIT_S = 10.0


class ScorerActor:
    """Scores the newest checkpoint. While it scores one, only the latest of the new ones waits.

    Whatever goes wrong with a score is recorded, and never stops a training.
    """

    def __init__(self, config: dict[str, Any], recorder: str):
        self._config = Config(**config)
        self._recorder = RecorderClient(ray.get_actor(recorder))
        send = functools.partial(self._recorder.log, "scorer")
        logs.begin(send, run=self._config.run.name, role="scorer", host=gethostname())
        self._storage = open_storage(self._config.run.dir, self._config.storage.retry_s)
        self._scorer: Scorer | None = None
        self._waiting: commits.Name | None = None
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="scorer", daemon=True)
        self._thread.start()

    def score(self, name: commits.Name) -> None:
        """Score it as soon as the one under way is done, unless a newer one comes first."""
        with self._wake:
            if self._waiting:
                log.warning("event=evaluation_skipped checkpoint=%s", self._waiting.folder)
            self._waiting = name
            self._wake.notify()

    def close(self, limit_s: float) -> bool:
        """Finish what is under way or waiting, within `limit_s`; returns whether all is done."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(limit_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        niceness = self._config.evaluation.niceness
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
        # It loads torch: here, before the first checkpoint comes, and not in who only starts the actor.
        importlib.import_module("service.scoring.scorer")
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
                event = Event(EventAction.UNSCORED, f"{kind}{error}")
                self._recorder.write(Record(name.clock, time.time(), event=event))

    def _score(self, name: commits.Name) -> None:
        from service.run.best import load
        from service.scoring.scorer import Scorer

        start = time.monotonic()
        if self._scorer is None:
            self._scorer = Scorer(self._config, self._config.evaluation, self._storage)
        trained = load(self._storage.url(name.folder))
        score = self._scorer.score(trained)
        ranking.write(self._storage, name, score)
        committed = commits.find(self._storage)[0]
        best = ranking.rank(self._storage, committed)[:1] == [name]
        value = score.values[score.by]
        log.info("event=scored checkpoint=%s %s=%.4g best=%s", name.folder, score.by, value, best)
        values = score.values | {"evaluation_seconds": time.monotonic() - start}
        event = Event(EventAction.BEST, f"{score.by} {value:.4g}", {"checkpoint": trained.address})
        self._recorder.write(
            Record(
                name.clock,
                time.time(),
                trained.attempt,
                scores=values,
                event=event if best else None,
            )
        )


def start_scorer(config: Config, recorder: str) -> "ScorerClient":
    """The run's scorer as a Ray actor, on any node that has the resources.

    `recorder` is the name of the recorder's actor: with a handle, Ray could not restart the scorer.
    """
    settings = config.evaluation
    actor = (
        ray.remote(ScorerActor)
        .options(num_cpus=settings.cpus, num_gpus=settings.gpus, max_restarts=-1)
        .remote(config.model_dump(), recorder)
    )
    return ScorerClient(actor)


class ScorerClient:
    """The caller's end of the actor, which travels to workers: it sends a request and goes on."""

    def __init__(self, actor: Any):
        self._actor = actor

    def score(self, name: commits.Name) -> None:
        """Request a score; it is skipped if a newer checkpoint comes before its turn."""
        try:
            self._actor.score.remote(name)
        except Exception as error:
            log.warning("event=scorer_silent error=%s", error)

    def close(self, limit_s: float) -> bool:
        """Wait up to `limit_s` for scores that are under way; returns whether all are done."""
        try:
            return ray.get(self._actor.close.remote(limit_s), timeout=limit_s + ANSWER_LIMIT_S)
        except Exception as error:
            log.warning("event=scorer_lost error=%s", error)
            return False
