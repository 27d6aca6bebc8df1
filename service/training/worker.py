"""The loop that every worker runs: load, rehearse, then cycle by cycle to the end."""

import contextlib
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from service.config import Config
from service.data.index import read_index
from service.data.loader import Loader
from service.data.samples import check_bad_samples
from service.recording.record import Record
from service.recording.recorder import RecorderClient
from service.storage import open_storage
from service.training import checkpoint, distributed
from service.training.curriculum import Curriculum, Cycle, Span, due
from service.training.distributed import Workers
from service.training.feed import check_memory, open_feeders, requests, source_of
from service.training.panel import draw_panel, panel_columns
from service.training.state import TrainState, new_state
from service.training.step import MEASURES, Step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What the supervisor hands to every worker: all values travel as plain data."""

    config: dict[str, Any]
    token: int
    end: int
    recorder: Any


def train(job: Job) -> int:
    """Train from the newest checkpoint to `job.end` images; returns the clock. Runs on each worker."""
    config = Config(**job.config)
    workers = distributed.join()
    if workers.device.type == "cpu":
        torch.set_num_threads(config.scale.cpus)
    session = Session(config, workers, RecorderClient(job.recorder))
    with session.feeders:
        return _train(session, job)


def _train(session: "Session", job: Job) -> int:
    config = session.config
    _rehearse(session, job)
    state = new_state(config, session.workers.device)
    resumed = checkpoint.resume(session.storage, state)
    session.check_same(resumed)
    if resumed:
        session.tell_checkpoint(*resumed)  # again, for a crash right after the commit
    step = Step(config, state, session.workers)
    saver = session.saver(job)
    saved = drawn = state.images
    with session.load(session.curriculum.cycles(state.images, job.end), state.attempt) as batches:
        meter = _Meter(session, batches, state.images)
        for cycle in session.curriculum.cycles(state.images, job.end):
            meter.add(step.cycle(cycle, batches))
            if due(config.tracking.every_images, cycle.start, cycle.end):
                meter.record(cycle)
            if due(config.tracking.pictures_every_images, cycle.start, cycle.end):
                _draw(session, state, cycle)
                drawn = state.images
            if due(config.checkpoint.every_images, cycle.start, cycle.end):
                _save(session, saver, state, meter)
                saved = state.images
    if drawn < state.images:
        _draw(session, state, cycle)
    if saved < state.images:
        _save(session, saver, state, meter)
    saver.wait()
    return state.images


class Session:
    """What the loop needs beside the state: data, curriculum, storage, the recorder."""

    def __init__(self, config: Config, workers: Workers, recorder: RecorderClient):
        self.config, self.workers, self.recorder = config, workers, recorder
        self.curriculum = Curriculum(config.phases, config.training.d_steps)
        self.storage = open_storage(config.run.dir, config.storage.retry_s, config.storage.timeout_s)
        place = open_storage(config.data.index_address, config.storage.retry_s, config.storage.timeout_s)
        source = source_of(config, read_index(place))
        check_memory(config, source, workers.count)
        self.feeders = open_feeders(config, source, workers.count)

    def load(self, cycles: Iterable[Cycle], attempt: int) -> Loader:
        """This worker's share of the batches of the cycles."""
        return Loader(self.feeders, requests(self.config, cycles, self.workers.share, attempt))

    def saver(self, job: Job) -> checkpoint.Checkpointer:
        """What commits checkpoints, once all records up to them are safe, and tells of each."""
        return checkpoint.Checkpointer(
            self.storage,
            job.token,
            self.config.checkpoint.keep,
            job.config,
            self.recorder.settle,
            self.tell_checkpoint,
        )

    def check_same(self, resumed: tuple[checkpoint.Name, dict[str, Any]] | None) -> None:
        """RuntimeError, so that all start again, unless the first worker found this checkpoint too."""
        sequence = resumed[0].sequence if resumed else 0
        first = self.workers.agree(sequence)
        if sequence != first:
            raise RuntimeError(f"loaded checkpoint {sequence}, but the first worker loaded {first}")

    def tell_checkpoint(self, name: checkpoint.Name, manifest: dict[str, Any]) -> None:
        """Record a committed checkpoint: its address and its files' digests."""
        if self.workers.is_first:
            about = {"address": self.storage.url(name.folder), "files": manifest["files"]}
            attempt = manifest["state"]["attempt"]
            self.recorder.write(Record(name.images, time.time(), attempt, checkpoint=about))


class _Meter:
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

    def record(self, cycle: Cycle) -> None:
        """Send the means since the last time; all workers take part."""
        workers = self.session.workers
        elapsed = time.perf_counter() - self.started
        waited = (self.batches.waited_s - self.waited_s) / elapsed
        counts = self.batches.feeders.counts()
        mine = torch.tensor([waited, *counts.values()], dtype=torch.float64, device=self.total.device)
        means = workers.mean(self.total / self.cycles).tolist()
        waited, *totals = workers.sum(mine).tolist()
        data = dict(zip(counts, totals, strict=True))
        images = cycle.end - self.clock
        values = dict(zip(MEASURES, means, strict=True)) | {
            "images": float(cycle.end),
            "images_per_s": images / elapsed,
            "data_wait_share": waited / workers.count,
            "resolution": float(cycle.stage.resolution),
            "alpha": cycle.stage.alpha,
            "workers": float(workers.count),
            **data,
        }
        self.latest = values
        if workers.is_first:
            note = {"stage": cycle.span.name}
            self.session.recorder.write(Record(cycle.end, time.time(), values=values, note=note))
        limit = self.session.config.data.max_bad_samples
        check_bad_samples(int(data["bad_samples"]), limit, "named in the workers' logs")
        self._reset(cycle.end)

    def _reset(self, clock: int) -> None:
        self.clock = clock
        self.cycles = 0
        self.started = time.perf_counter()
        self.waited_s = self.batches.waited_s


def _draw(session: Session, state: TrainState, cycle: Cycle) -> None:
    """Send the panel at this clock; only the first worker draws."""
    if session.workers.is_first:
        bf16 = session.config.training.precision == "bf16"
        autocast = torch.autocast(session.workers.device.type, torch.bfloat16, enabled=bf16)
        images = draw_panel(session.config, state.ema, cycle.stage, autocast)
        record = Record(state.images, time.time(), state.attempt)
        columns, pixels = panel_columns(session.config), session.config.model.resolution
        session.recorder.draw(record, images, columns, pixels)


def _save(session: Session, saver: checkpoint.Checkpointer, state: TrainState, meter: _Meter) -> None:
    if session.workers.is_first:
        saver.save(state, meter.latest)


def _rehearse(session: Session, job: Job) -> None:
    """One whole cycle of every span that the run may come to, twice, and all of it thrown away.

    What would fail on day three fails now, by name; the second time tells how long a cycle takes.
    """
    state = new_state(session.config, session.workers.device)
    step = Step(session.config, state, session.workers)
    seconds: dict[str, float] = {}
    for span in session.curriculum.spans:
        if span.start >= job.end:
            break
        try:
            seconds[span.name] = _rehearse_span(session, step, span)
        except Exception as error:
            error.add_note(f"This happened in the rehearsal of phase {span.name!r}.")
            raise
    if session.workers.is_first:
        checkpoint.copy_to_cpu(state.tensors())
        forecast = [
            [s.start, s.end, s.cycle_images, seconds[s.name]]
            for s in session.curriculum.spans
            if s.name in seconds
        ]
        committed, _ = checkpoint.find(session.storage)
        clock = committed[-1].images if committed else 0
        session.recorder.write(Record(clock, time.time(), note={"forecast": forecast}))


def _rehearse_span(session: Session, step: Step, span: Span) -> float:
    cycle = session.curriculum.at(span.start)
    with contextlib.ExitStack() as stack:
        batches = stack.enter_context(session.load([cycle, cycle], attempt=0))
        step.cycle(cycle, batches).tolist()
        start = time.perf_counter()
        step.cycle(cycle, batches).tolist()  # reading the result waits for the device
        return time.perf_counter() - start
