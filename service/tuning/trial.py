"""One trial for Ray Tune: starts the driver of its training, and reports each score.

It is a class because Tune waits only for a class's `cleanup`. Tune keeps no checkpoint of it: a trial
that is started again goes on from its own run directory.
"""

import logging
import math
from typing import Any

from ray import tune

from service.cli import Exit
from service.errors import ServiceError, UsageError
from service.run import commits, ranking
from service.run.commits import Name
from service.run.ranking import Score
from service.storage import open_storage
from service.tuning.driver import COLLAPSED, Driver
from service.tuning.plan import Plan, TrialState
from service.tuning.space import decode

log = logging.getLogger(__name__)

TIME, METRIC = "clock", "score"
WORST_SCORE = 1e30
"""The score of a trial that collapsed or was refused: finite, because searches sort and average."""
POLL_S = 1.0


class Trial(tune.Trainable):
    """A run in its own folder; a step lasts until the next score."""

    def setup(self, config: dict[str, Any], plan: Plan, key: str) -> None:
        """Start the training or go on with it, unless the trial's values do not fit together."""
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
        """The next score, or how the trial ended; ServiceError if its driver died: Tune tries again."""
        if self._driver is None:
            return self._worst(TrialState.REFUSED, self._refused)
        while True:
            code = self._driver.wait(POLL_S)
            fresh = self._fresh_scores()
            # in the order of commits; the last one is reported when everything is closed
            name = min(fresh, default=None)
            if name and name.clock < self._end:
                return self._report(name, fresh[name]) | {"state": TrialState.TRAINING.value}
            if name and code == 0:
                return self._report(name, fresh[name]) | {
                    "state": TrialState.FINISHED.value,
                    "done": True,
                }
            if code is not None:
                return self._ended(code, self._driver.output())

    def cleanup(self) -> None:
        """Stop the training if it still runs, and wait until its workers are released."""
        if self._driver:
            self._driver.stop()

    def _report(self, name: Name, score: Score) -> dict[str, Any]:
        self._reported.add(name)
        self._last = {TIME: score.clock, METRIC: score.rank, "resolution": score.resolution}
        return dict(self._last)

    def _fresh_scores(self) -> dict[Name, Score]:
        """Scores that rank and were not reported yet, of checkpoints that still exist."""
        scores = ranking.read(self._run_dir, commits.find(self._run_dir)[0])
        return {
            name: score
            for name, score in scores.items()
            if math.isfinite(score.rank) and name not in self._reported
        }

    def _ended(self, code: int, output: str) -> dict[str, Any]:
        if code == COLLAPSED:
            log.warning("event=trial_collapsed trial=%s reason=%s", self.trial_id, output)
            return self._worst(TrialState.COLLAPSED, output)
        if code == Exit.USAGE:
            return self._worst(TrialState.REFUSED, output)
        if code:
            raise ServiceError(
                f"the driver of {self._run_dir.address} ended with exit code {code}: {output}"
            )
        if not self._last:
            raise ServiceError(f"{self._run_dir.address}: trained to the end, but has no score")
        return self._last | {"state": TrialState.FINISHED.value, "done": True}

    def _worst(self, state: TrialState, reason: str) -> dict[str, Any]:
        last = {TIME: commits.newest_clock(self._run_dir), "resolution": 0} | self._last
        return last | {METRIC: WORST_SCORE, "state": state.value, "reason": reason, "done": True}
