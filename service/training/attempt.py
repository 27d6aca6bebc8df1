"""A stretch of training between two rewinds: the settings in force, the step, and who watches it."""

import logging
import time
from typing import Any

import torch

from service.collapse import detector
from service.collapse.response import RESPONSES, respond
from service.data.loader import Loader
from service.data.samples import check_bad_samples
from service.engine.curriculum import Cycle
from service.engine.state import TrainState
from service.engine.step import MEASURES, Step
from service.recording.record import Record
from service.training import checkpoint
from service.training.monitor import Monitor
from service.training.session import Session

log = logging.getLogger(__name__)


class Attempt:
    """Steps through the cycles from the state's clock on, and judges how it goes."""

    def __init__(self, session: Session, state: TrainState):
        self.session, self.state = session, state
        self.config, self.curriculum = session.amended(state)
        self.step = Step(self.config, state, session.workers)
        self.monitor = Monitor(self.config, session.workers, session.panel, session.real, self.step)

    def load(self, end: int) -> Loader:
        """This worker's share of the batches up to the clock `end`."""
        cycles = self.curriculum.cycles(self.state.images, end)
        return self.session.load(cycles, self.state.attempt)

    def judge(self, cycle: Cycle, meter: "Meter") -> str:
        """Measure, judge and record; which of RESPONSES is to be made, the same on all workers."""
        workers, state = self.session.workers, self.state
        signals = meter.read(cycle)
        signals |= self.monitor.look(cycle)
        cycles = (cycle.end - cycle.span.start) // cycle.span.cycle_images
        # of what resumes, times and rates of this machine are no part
        judged = {name: signals[name] for name in detector.SIGNALS if name in signals}
        told = detector.Measurement(cycle.end, cycle.span.name, cycles, judged)
        before = state.monitor.get("verdict", {})
        history = [*state.monitor.get("history", []), told.to_plain()][-detector.HISTORY :]
        verdict = detector.judge([detector.Measurement.from_plain(item) for item in history])
        settings = self.session.config.collapse
        response = respond(verdict, detector.Verdict(**before), settings, state.attempt)
        # a last bit of rounding may not part the workers' ways
        response = RESPONSES[workers.agree(RESPONSES.index(response))]
        onset = workers.agree(verdict.onset)
        state.monitor |= {"history": history, "verdict": verdict.to_plain() | {"onset": onset}}
        if workers.is_first:
            self._record(cycle, signals, verdict)
        if response in ("alert", "protect"):
            self._keep_and_tell(response, verdict)
        return response

    def _record(self, cycle: Cycle, values: dict[str, float], verdict: detector.Verdict) -> None:
        levels = {"collapse_level": float(detector.LEVELS.index(verdict.level))}
        note = {"stage": cycle.span.name, "verdict": verdict.to_plain()}
        clock, attempt = cycle.end, self.state.attempt
        finite = {k: v for k, v in (values | levels).items() if v == v}
        self.session.recorder.write(Record(clock, time.time(), attempt, values=finite, note=note))

    def _keep_and_tell(self, action: str, verdict: detector.Verdict) -> None:
        details: dict[str, Any] = {"level": verdict.level, "kind": verdict.kind}
        if action == "protect" and self.session.workers.is_first:
            found = checkpoint.healthy(self.session.storage, verdict.onset)
            name = next((name for name, *_ in found), None)
            if name:
                details["checkpoint"] = name.folder
                protected = self.state.monitor.setdefault("protected", [])
                self.state.monitor["protected"] = [*protected, name.folder]
        self.session.tell(self.state, action, verdict.reason, **details)


class Meter:
    """Adds up what the cycles measured, and reads it from the device when it is due."""

    def __init__(self, session: Session, batches: Loader, clock: int):
        self.session, self.batches = session, batches
        self.total = torch.zeros(len(MEASURES))
        self.latest: dict[str, float] = {}
        self._reset(clock)

    def add(self, measures: torch.Tensor) -> None:
        """Take the measures of one cycle; stays on the device."""
        self.total = measures if self.cycles == 0 else self.total + measures
        self.cycles += 1

    def read(self, cycle: Cycle) -> dict[str, float]:
        """The means since the last time, over all workers, who all take part."""
        workers = self.session.workers
        elapsed = time.perf_counter() - self.started
        waited = (self.batches.waited_s - self.waited_s) / elapsed
        retries = {"storage_retries": self.session.storage.traffic.retries}
        counts = self.batches.feeders.counts() | retries
        mine = torch.tensor([waited, *counts.values()], dtype=torch.float64, device=self.total.device)
        means = workers.mean(self.total / self.cycles).tolist()
        waited, *totals = workers.sum(mine).tolist()
        data = dict(zip(counts, totals, strict=True))
        self.latest = dict(zip(MEASURES, means, strict=True)) | {
            "images": float(cycle.end),
            "images_per_s": (cycle.end - self.clock) / elapsed,
            "data_wait_share": waited / workers.count,
            "resolution": float(cycle.stage.resolution),
            "alpha": cycle.stage.alpha,
            "workers": float(workers.count),
            **data,
        }
        limit = self.session.config.data.max_bad_samples
        check_bad_samples(int(data["bad_samples"]), limit, "named in the workers' logs")
        self._reset(cycle.end)
        return dict(self.latest)

    def _reset(self, clock: int) -> None:
        self.clock = clock
        self.cycles = 0
        self.started = time.perf_counter()
        self.waited_s = self.batches.waited_s
