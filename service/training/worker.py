"""The loop that every worker runs: rehearse, load, then cycle by cycle to the end."""

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from service.config import Config
from service.engine import distributed
from service.engine.curriculum import Cycle, due
from service.engine.panel import draw_panel
from service.engine.state import TrainState, new_state
from service.errors import MemoryLackError
from service.recording.record import Record
from service.recording.recorder import RecorderClient
from service.run import checkpoint
from service.run.checkpoint import Checkpointer
from service.scoring.actor import ScorerClient
from service.training.attempt import Attempt, Meter
from service.training.context import Context
from service.training.rehearsal import rehearse
from service.training.respond import carry_out

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What the supervisor hands to every worker; the configuration travels as plain data.

    `node_is_leaving` says whether a node of the group is about to go; all workers call it together.
    """

    config: dict[str, Any]
    token: int
    end: int
    recorder: RecorderClient
    scorer: ScorerClient | None = None
    node_is_leaving: Callable[[], bool] | None = None


def train(job: Job) -> int:
    """Train from the newest checkpoint to the clock `job.end`, and return it. Runs on each worker."""
    config = Config(**job.config)
    workers = distributed.join()
    if workers.device.type == "cpu":
        torch.set_num_threads(config.scale.cpus)
    context = Context(config, workers, job.recorder, job.scorer, job.node_is_leaving)
    with context.feeders, contextlib.closing(context.real):
        try:
            return _train(context, job)
        except torch.OutOfMemoryError as error:
            where = " ".join(getattr(error, "__notes__", ()))
            raise MemoryLackError(
                f"the GPU's memory does not suffice ({str(error).partition('.')[0]}). {where} Raise the"
                " phase's accumulation, which cuts its batch into smaller parts, or take larger GPUs"
            ) from error


def _train(context: Context, job: Job) -> int:
    state = new_state(context.config, context.workers.device)
    # The rehearsal uses the state up; drawing large orthogonal weights again may take a minute.
    start = checkpoint.copy_to_cpu(state.tensors()), state.plain()
    rehearse(context, state, job.end)
    resumed = checkpoint.resume(context.storage, state)
    context.check_same(resumed[0] if resumed else None)
    if resumed:
        # again: the last driver may have died right after the commit
        context.record_checkpoint(*resumed)
    else:
        state.load(*start)
    del start
    saver = context.saver(job.token)
    while not _advance(context, job.end, state, saver):
        pass  # a rewind has put the state back: the next attempt starts from there
    return state.clock


def _advance(context: Context, end: int, state: TrainState, saver: Checkpointer) -> bool:
    """Train to the clock `end`, cycle by cycle; False if a rewind put the state back first.

    On a notice, save and stop at a look: between two, the next point of the curves would lack a part.
    """
    attempt = Attempt(context, state)
    config, saved, drawn = context.config, state.clock, state.clock
    with attempt.load(end) as batches:
        meter = Meter(context, batches, state.clock)
        leaving = False
        for cycle in attempt.curriculum.cycles(state.clock, end):
            attempt.monitor.prepare(cycle)
            meter.add(attempt.step.cycle(cycle, batches))
            if due(config.tracking.every_images, cycle.start, cycle.end):
                response = attempt.judge(cycle, meter)
                if not carry_out(response, context, state, saver):
                    return False
                leaving = context.is_leaving()
            if due(config.tracking.pictures_every_images, cycle.start, cycle.end):
                _draw(context, state, cycle)
                drawn = state.clock
            if due(config.checkpoint.every_images, cycle.start, cycle.end):
                _save(context, saver, state, meter)
                saved = state.clock
            if leaving and state.clock < end:
                log.warning("event=leaving clock=%d", state.clock)
                if saved < state.clock and context.workers.is_first:
                    saver.save(state, meter.latest, due=False)
                saver.wait()
                return True
    if drawn < state.clock:
        _draw(context, state, cycle)
    if saved < state.clock:
        _save(context, saver, state, meter)
    saver.wait()
    context.score_last()
    return True


def _draw(context: Context, state: TrainState, cycle: Cycle) -> None:
    """Send the panel at this clock; only the first worker draws."""
    if context.workers.is_first:
        images = draw_panel(context.config, state.ema, cycle.stage, context.autocast)
        record = Record(state.clock, time.time(), state.attempt)
        context.recorder.draw(record, images, context.grid_look)


def _save(context: Context, saver: Checkpointer, state: TrainState, meter: Meter) -> None:
    if context.workers.is_first:
        saver.save(state, meter.latest)
