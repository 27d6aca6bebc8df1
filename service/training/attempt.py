"""A stretch of training between two rewinds: the settings in force, the step, and what watches it."""

import math
import shutil
import time
from dataclasses import replace

import torch

from service.collapse import detector
from service.collapse.response import Response, decide
from service.collapse.state import HISTORY, Measurement, Verdict
from service.data.dataset import check_bad_samples
from service.data.loader import Loader
from service.engine.curriculum import Cycle
from service.engine.flops import peak_flops
from service.engine.state import TrainState
from service.engine.step import Measures, Step
from service.recording.record import Note, Record
from service.training.context import Context
from service.training.monitor import Monitor
from service.training.pace import slowest
from service.training.vitals import Vitals, worst


class Attempt:
    """Steps through the cycles from the state's clock on, and judges how it goes."""

    def __init__(self, context: Context, state: TrainState):
        self.context, self.state = context, state
        self.config, self.curriculum = context.amended(state)
        self.step = context.step(self.config, state)
        self.monitor = Monitor(self.config, context.workers, context.panel, context.real, self.step)

    def load(self, end: int) -> Loader:
        """This worker's share of the batches up to the clock `end`."""
        cycles = self.curriculum.cycles(self.state.clock, end)
        return self.context.load(cycles, self.state.attempt)

    def judge(self, cycle: Cycle, meter: "Meter") -> Response:
        """Measure, judge, remember and record; the response is the same on all workers."""
        workers, state = self.context.workers, self.state
        values = meter.read(cycle)
        values |= self.monitor.look(cycle)
        before = state.collapse
        history = (*before.history, _measurement(cycle, values))[-HISTORY:]
        verdict = detector.judge(history)
        response = decide(verdict, before.verdict, self.context.config.collapse, state.attempt)
        # rounding in the last bit must not let workers respond differently
        responses = list(Response)
        response = responses[workers.agree(responses.index(response))]
        verdict = replace(verdict, onset=workers.agree(verdict.onset))
        state.collapse = replace(before, history=history, verdict=verdict)
        if workers.is_first:
            self._record(cycle, values, verdict)
        return response

    def _record(self, cycle: Cycle, values: dict[str, float], verdict: Verdict) -> None:
        values = values | {"collapse_level": float(verdict.level.severity)}
        finite = {name: value for name, value in values.items() if value == value}
        note = Note(stage=cycle.span.name, verdict=verdict)
        record = Record(cycle.end, time.time(), self.state.attempt, values=finite, note=note)
        self.context.recorder.write(record)


def _measurement(cycle: Cycle, values: dict[str, float]) -> Measurement:
    """What is judged and resumes: only signals, no times or rates of this machine."""
    cycles = (cycle.end - cycle.span.start) // cycle.span.cycle_images
    signals = {name: values[name] for name in detector.SIGNALS if name in values}
    return Measurement(cycle.end, cycle.span.name, cycles, signals)


class Meter:
    """Adds up what the cycles measured, and reads it from the device when it is due."""

    def __init__(self, context: Context, batches: Loader, clock: int, step: Step):
        self.context, self.batches, self.step = context, batches, step
        self._vitals = Vitals(context.workers.device)
        self._peak = context.config.scale.peak_flops or peak_flops(context.workers.device) or math.nan
        self._host_s = 0.0
        self.latest: dict[str, float] = {}
        self._names: tuple[str, ...] = ()
        self._total, self._cycles = torch.zeros(()), 0
        self._reset(clock)

    def add(self, measures: Measures, host_s: float) -> None:
        """Take the measures of one cycle, which stay on the device, and the host's seconds for it."""
        self._host_s += host_s
        values = torch.stack([*measures.values()])
        self._names = tuple(measures)
        self._total = values if self._cycles == 0 else self._total + values
        self._cycles += 1

    def read(self, cycle: Cycle) -> dict[str, float]:
        """The means over all workers since the last call; all workers take part."""
        workers = self.context.workers
        elapsed = time.perf_counter() - self._started
        means = workers.mean(self._total / self._cycles).tolist()
        counts = self._counts(elapsed)
        self.latest = dict(zip(self._names, means, strict=True)) | {
            "images": float(cycle.end),
            "images_per_s": (cycle.end - self._clock) / elapsed,
            "resolution": float(cycle.stage.resolution),
            "alpha": cycle.stage.alpha,
            "workers": float(workers.count),
            **counts,
        }
        limit = self.batches.feeders.dataset.max_bad_samples
        check_bad_samples(int(counts["bad_samples"]), limit, "named in the workers' logs")
        self._reset(cycle.end)
        return dict(self.latest)

    def _counts(self, elapsed: float) -> dict[str, float]:
        """Counts of what was read, added up over all workers; who waits longest, and computes slowest.

        A mean over many workers would hide one that starves, for which all others wait.
        """
        workers = self.context.workers
        mine = {
            "data_wait_share": (self.batches.waited_s - self._waited_s) / elapsed,
            "pace_s": self.context.pace.seconds(),
            "cache_free_bytes": self._cache_free(),
        }
        waited_s = self.batches.waited_s - self._waited_s
        vitals = self._vitals.read() | {
            "host_step_share": (self._host_s - waited_s - self.step.waited_s + self._step_s) / elapsed,
            "mfu": (self.step.flops - self._flops) / elapsed / self._peak,
        }
        counts = {
            "storage_retries": self.context.storage.traffic.retries,
            **self.batches.feeders.counts(),
        }
        values = torch.tensor(
            [*mine.values(), *vitals.values(), *counts.values()],
            dtype=torch.float64,
            device=self._total.device,
        )
        each = workers.gather(values).cpu()  # all at once
        own, states, added = each.split([len(mine), len(vitals), len(counts)], dim=1)
        waits, paces, free = own.unbind(1)
        total = dict(zip(counts, added.sum(0).tolist(), strict=True))
        times_median, slowest_rank = slowest(paces)
        compared = {
            "data_wait_share": waits.mean().item(),
            "data_wait_share_largest": waits.max().item(),
            "data_wait_rank": float(waits.argmax()),
            "pace_s": paces.median().item(),
            "slowest_worker": times_median,
            "slowest_worker_rank": float(slowest_rank),
        }
        disk = {} if free.isnan().any() else {"cache_free_bytes": free.min().item()}
        return total | compared | worst([*vitals], states) | disk

    def _cache_free(self) -> float:
        """Free bytes on the disk of this node's cache; NaN without one."""
        folder = self.context.config.data.cache_dir
        try:
            return shutil.disk_usage(folder).free if folder else math.nan
        except OSError:  # not there yet, or not any more: reading says what is wrong
            return math.nan

    def _reset(self, clock: int) -> None:
        self._total, self._cycles = torch.zeros(()), 0
        self._clock = clock
        self._started = time.perf_counter()
        self._waited_s = self.batches.waited_s
        self._flops, self._host_s, self._step_s = self.step.flops, 0.0, self.step.waited_s
