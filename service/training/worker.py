"""The loop that every worker runs: load, rehearse, then cycle by cycle to the end."""

import contextlib
import logging
import time
from dataclasses import dataclass
from typing import Any

import torch

from service.config import Config
from service.engine import distributed
from service.engine.curriculum import Cycle, due
from service.engine.panel import draw_panel, panel_columns
from service.engine.state import TrainState, new_state
from service.recording.record import Record
from service.recording.recorder import RecorderClient
from service.training import checkpoint
from service.training.attempt import Attempt, Meter
from service.training.checkpoint import Checkpointer
from service.training.rehearsal import rehearse
from service.training.rewind import collapse_error, rewind
from service.training.session import Session

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What the supervisor hands to every worker: all values travel as plain data."""

    config: dict[str, Any]
    token: int
    end: int
    recorder: Any
    evaluator: Any = None


def train(job: Job) -> int:
    """Train from the newest checkpoint to `job.end` images; returns the clock. Runs on each worker."""
    config = Config(**job.config)
    workers = distributed.join()
    if workers.device.type == "cpu":
        torch.set_num_threads(config.scale.cpus)
    session = Session(config, workers, RecorderClient(job.recorder), job.evaluator)
    with session.feeders, contextlib.closing(session.real):
        return _train(session, job)


def _train(session: Session, job: Job) -> int:
    rehearse(session, new_state(session.config, session.workers.device), job.end)
    state = new_state(session.config, session.workers.device)
    resumed = checkpoint.resume(session.storage, state)
    session.check_same(resumed[0] if resumed else None)
    if resumed:
        session.tell_checkpoint(*resumed)  # again, for a crash right after the commit
    saver = session.saver(job.token)
    while not _advance(session, job, state, saver):
        rewind(session, saver, state)
    return state.images


def _advance(session: Session, job: Job, state: TrainState, saver: Checkpointer) -> bool:
    """Cycle by cycle to the end; False where a collapse asks for a rewind first."""
    attempt = Attempt(session, state)
    config, saved, drawn = session.config, state.images, state.images
    with attempt.load(job.end) as batches:
        meter = Meter(session, batches, state.images)
        for cycle in attempt.curriculum.cycles(state.images, job.end):
            attempt.monitor.prepare(cycle)
            meter.add(attempt.step.cycle(cycle, batches))
            if due(config.tracking.every_images, cycle.start, cycle.end):
                response = attempt.judge(cycle, meter)
                if response in ("rewind", "stop"):
                    saver.wait()
                if response == "stop":
                    raise collapse_error(session, state)
                if response == "rewind":
                    return False
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
    session.score_last()
    return True


def _draw(session: Session, state: TrainState, cycle: Cycle) -> None:
    """Send the panel at this clock; only the first worker draws."""
    if session.workers.is_first:
        bf16 = session.config.training.precision == "bf16"
        autocast = torch.autocast(session.workers.device.type, torch.bfloat16, enabled=bf16)
        images = draw_panel(session.config, state.ema, cycle.stage, autocast)
        record = Record(state.images, time.time(), state.attempt)
        columns, pixels = panel_columns(session.config), session.config.model.resolution
        session.recorder.draw(record, images, columns, pixels)


def _save(session: Session, saver: Checkpointer, state: TrainState, meter: Meter) -> None:
    if session.workers.is_first:
        saver.save(state, meter.latest)
