"""One trial for Ray Tune: starts its training's driver, and reports each score that comes of it.

A class rather than a function, because Tune waits for the end of a class's `cleanup` alone. It keeps no
checkpoint with Tune: a trial that is started again goes on from its own run directory.
"""

import logging
import math
from typing import Any

from ray import tune

from service.errors import ServiceError, UsageError
from service.storage import Storage, open_storage
from service.training import checkpoint, scores
from service.training.checkpoint import Name
from service.training.scores import Score
from service.tuning.driver import COLLAPSED, Driver
from service.tuning.plan import Plan
from service.tuning.space import decode

log = logging.getLogger(__name__)

TIME, METRIC = "images", "score"
WORST_SCORE = 1e30
"""What a collapsed trial scores: finite, for searches sort and average what they are told."""
POLL_S = 1.0
USAGE = 2


class Trial(tune.Trainable):
    """A run in a folder of its own; a step lasts until the next score."""

    def setup(self, config: dict[str, Any], plan: Plan, key: str) -> None:
        """Start, or go on with, the training, unless the trial's values do not go together."""
        self._run_dir = open_storage(plan.run_dir(self.trial_id), plan.config.storage.retry_s)
        self._end = plan.end
        self._reported: set[Name] = set()
        self._last: dict[str, Any] = {}
        self._driver: Driver | None = None
        try:
            run = plan.trial(self.trial_id, decode(plan.space, config))
        except UsageError as error:
            self._refused = str(error)
        else:
            self._driver = Driver(run, key)

    def step(self) -> dict[str, Any]:
        """The next score, or how it ended; an error, for Tune to try again, where the driver died."""
        if self._driver is None:
            return self._worst("refused", self._refused)
        while True:
            code = self._driver.wait(POLL_S)
            fresh = self._fresh_scores()
            # in the order of their commits; that of the end is told when all is closed
            name = min(fresh, default=None)
            if name and name.images < self._end:
                return self._report(name, fresh[name]) | {"state": "training"}
            if name and code == 0:
                return self._report(name, fresh[name]) | {"state": "finished", "done": True}
            if code is not None:
                return self._ended(code, self._driver.told())

    def cleanup(self) -> None:
        """Stop the training, if it still runs, and wait until its workers are given back."""
        if self._driver:
            self._driver.stop()

    def _report(self, name: Name, score: Score) -> dict[str, Any]:
        self._reported.add(name)
        self._last = {TIME: score.images, METRIC: score.rank, "resolution": score.resolution}
        return dict(self._last)

    def _fresh_scores(self) -> dict[Name, Score]:
        """Those that rank and were not reported yet, of checkpoints that are still there."""
        found = scores.read(self._run_dir, checkpoint.find(self._run_dir)[0])
        ranking = {name: score for name, score in found.items() if math.isfinite(score.rank)}
        return {name: score for name, score in ranking.items() if name not in self._reported}

    def _ended(self, code: int, told: str) -> dict[str, Any]:
        if code == COLLAPSED:
            log.warning("event=trial_collapsed trial=%s reason=%s", self.trial_id, told)
            return self._worst("collapsed", told)
        if code == USAGE:
            return self._worst("refused", told)
        if code:
            raise ServiceError(
                f"the driver of {self._run_dir.address} ended with exit code {code}: {told}"
            )
        if not self._last:
            raise ServiceError(f"{self._run_dir.address}: trained to the end, but has no score")
        return self._last | {"state": "finished", "done": True}

    def _worst(self, state: str, reason: str) -> dict[str, Any]:
        last = {TIME: _clock(self._run_dir), "resolution": 0} | self._last
        return last | {METRIC: WORST_SCORE, "state": state, "reason": reason, "done": True}


def _clock(storage: Storage) -> int:
    return max((name.images for name in checkpoint.find(storage)[0]), default=0)
