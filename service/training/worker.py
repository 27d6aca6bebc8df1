"""The loop that every worker runs: rehearse, load, then cycle by cycle to the end."""

import contextlib
import logging
import time

import torch

from service import logs
from service.config import Config
from service.engine import distributed
from service.engine.curriculum import Cycle, due
from service.engine.device import lacks_memory, use_device
from service.engine.panel import draw_panel
from service.engine.state import TrainState, new_state
from service.errors import MemoryLackError
from service.recording.record import EventAction, Record
from service.recording.recorder import Leaving
from service.run import checkpoint, commits
from service.run.checkpoint import Checkpointer
from service.training import memory
from service.training.attempt import Attempt, Meter
from service.training.context import Context
from service.training.heart import DRAWING, LOADING, MEASURING, RESPONDING, SAVING, TRAINING
from service.training.job import Job
from service.training.rehearsal import rehearse
from service.training.respond import carry_out

log = logging.getLogger(__name__)


def train(job: Job) -> int:
    """Train from the newest checkpoint to the clock `job.end`, and return it. Runs on each worker."""
    config = Config(**job.config)
    workers = distributed.join(config.scale.group_timeout_s)
    use_device(config.training, workers.device)
    if workers.device.type == "cpu":
        torch.set_num_threads(config.scale.cpus)
    context = Context(config, workers, job.token, job.recorder, job.scorer, job.node_is_leaving)
    with context.feeders, contextlib.closing(context.real), context.heart:
        try:
            return _train(context, job)
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
            where = " ".join(getattr(error, "__notes__", ()))
            raise MemoryLackError(
                f"the GPU's memory does not suffice ({str(error).partition('.')[0]}). {where} Set"
                f" scale.device_batch to fewer images at a time; or {memory.REMEDY}"
            ) from error


def _train(context: Context, job: Job) -> int:
    state = new_state(context.config, context.workers.device)
    context.follow_first(state)  # orthogonal weights come from each host's own LAPACK
    context.memory.found(context.relay)
    start = None
    if not job.rehearsed or context.workers.count < job.rehearsed:  # fewer need more memory each
        # The rehearsal uses the state up; drawing large orthogonal weights again may take a minute.
        start = checkpoint.copy_to_cpu(state.tensors()), state.plain()
        rehearse(context, state, job.end)
    context.heart.turn_to(LOADING, state.clock)
    resumed = checkpoint.resume(context.relay, state)
    if resumed:
        # again: the last driver may have died right after the commit
        context.record_checkpoint(*resumed)
        _tell_size(context, state, resumed[1])
    else:
        if start:
            state.load(*start)
        context.take_given(state)
    del start
    saver = context.saver()
    while not _advance(context, job.end, state, saver):
        pass  # a rewind has put the state back: the next attempt starts from there
    return state.clock


def _tell_size(context: Context, state: TrainState, manifest: commits.Manifest) -> None:
    """Record that there are more workers than made this checkpoint, or fewer."""
    before, now = int(manifest.metrics.get("workers", 0)), context.workers.count
    if before and before != now:
        reason = f"{before} → {now} workers"
        context.record_event(state, EventAction.RESIZE, reason, before=before, now=now)


def _advance(context: Context, end: int, state: TrainState, saver: Checkpointer) -> bool:
    """Train to the clock `end`, cycle by cycle; False if a rewind put the state back first.

    When the group is to leave, it stops at a commit, or on a notice saves and stops at a look: between
    two, the next point of the curves would lack a part.
    """
    context.heart.begin()
    logs.note(attempt=state.attempt)
    attempt = Attempt(context, state)
    config, saves, drawn = context.config, _Saves(context, state, saver), state.clock
    with attempt.load(end) as batches:
        meter = Meter(context, batches, state.clock, attempt.step)
        leaving, late = Leaving.NO, False
        for cycle in attempt.curriculum.cycles(state.clock, end):
            context.heart.turn_to(TRAINING, cycle.start, cycle.span.name)
            attempt.monitor.prepare(cycle)
            begun = time.perf_counter()
            measures = attempt.step.cycle(cycle, batches)
            meter.add(measures, time.perf_counter() - begun)
            if due(config.tracking.every_images, cycle.start, cycle.end):
                context.heart.turn_to(MEASURING, cycle.end, cycle.span.name)
                response = attempt.judge(cycle, meter)
                context.heart.turn_to(RESPONDING, cycle.end)
                if not carry_out(response, context, state, saver):
                    return False
                leaving, late = context.leaving(), context.is_late(saves.at)
            if due(config.tracking.pictures_every_images, cycle.start, cycle.end):
                _draw(context, state, cycle)
                drawn = state.clock
            is_due = due(config.checkpoint.every_images, cycle.start, cycle.end)
            if is_due or (late and state.clock < end):  # that of the end is due in any case
                saves.save(meter, is_due)
                late = False
            if state.clock < end and saves.may_leave(leaving):
                log.warning("event=leaving clock=%d", state.clock)
                saves.end(meter, is_due=False)
                return True
    if drawn < state.clock:
        _draw(context, state, cycle)
    saves.end(meter)
    context.score_last()
    return True


class _Saves:
    """The checkpoints of a stretch of training: of which clock the last one is, and when it was made."""

    def __init__(self, context: Context, state: TrainState, saver: Checkpointer):
        self._context, self._state, self._saver = context, state, saver
        self.clock, self.at = state.clock, time.monotonic()

    def save(self, meter: Meter, is_due: bool = True) -> None:
        """Save the state at this clock; only the first worker does."""
        self.clock, self.at = self._state.clock, time.monotonic()
        if self._context.workers.is_first:
            self._context.heart.turn_to(SAVING, self.clock)
            self._saver.save(self._state, meter.latest, is_due)

    def may_leave(self, leaving: Leaving) -> bool:
        """Whether the group is to stop at this clock."""
        is_saved = self.clock == self._state.clock
        return leaving == Leaving.AT_LOOK or (leaving == Leaving.AT_COMMIT and is_saved)

    def end(self, meter: Meter, is_due: bool = True) -> None:
        """Save what is not saved yet, and wait until all is committed."""
        if self.clock < self._state.clock:
            self.save(meter, is_due)
        if self._context.workers.is_first:
            self._context.heart.turn_to(SAVING, self.clock)
        self._saver.wait()


def _draw(context: Context, state: TrainState, cycle: Cycle) -> None:
    """Send the panel at this clock; only the first worker draws."""
    if context.workers.is_first:
        context.heart.turn_to(DRAWING, state.clock)
        images = draw_panel(context.config, state.ema, cycle.stage, context.autocast)
        record = Record(state.clock, time.time(), state.attempt)
        context.recorder.draw(record, images, context.grid_look)
