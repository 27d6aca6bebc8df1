"""Runs cycles of every phase and throws them away: what would fail on day three fails now."""

import io
import time
from functools import partial

import torch

from service.config import Config
from service.engine.curriculum import Cycle
from service.engine.panel import draw_panel
from service.engine.state import TrainState
from service.engine.step import Measures, Step
from service.recording.record import Note, Record, SpanTime
from service.run import checkpoint, commits
from service.training.context import Context
from service.training.heart import REHEARSING
from service.training.monitor import Monitor


def rehearse(context: Context, state: TrainState, end: int) -> None:
    """Run some cycles of every span that begins before the clock `end`; `state` is used up.

    Before a span, it is found out how many images its memory holds at a time. In the last span, where
    images are largest, the signals are measured and the panel is drawn; in the end the state is saved to
    nowhere. Each takes memory of its own. An error names its phase. The last cycle is timed, and the
    forecast is recorded.
    """
    config, curriculum = context.amended(state)
    thawed = config.run.model_copy(update={"freeze": {}})  # which takes the most memory
    config = config.model_copy(update={"run": thawed})
    step = context.step(config, state)
    monitor = Monitor(config, context.workers, context.panel, context.real, step)
    seconds: dict[str, float] = {}
    spans = [span for span in curriculum.spans if span.start < end]
    for span in spans:
        context.heart.turn_to(REHEARSING, span.start, span.name)
        try:
            cycle = curriculum.at(span.start)
            if span is spans[-1]:
                monitor.prepare(cycle)
            context.memory.fit(span, partial(_try, context, config, state, cycle))
            seconds[span.name] = _rehearse_span(context, step, cycle)
            if span is spans[-1]:
                monitor.look(cycle)
                _draw(context, state, cycle)
        except Exception as error:
            error.add_note(f"This happened in the rehearsal of phase {span.name!r}.")
            raise
    context.memory.keep(context.storage)
    if context.workers.is_first:
        for part in checkpoint.copy_to_cpu(state.tensors()).values():
            torch.save(part, io.BytesIO())
        forecast = tuple(
            SpanTime(span.start, span.end, span.cycle_images, seconds[span.name])
            for span in curriculum.spans
            if span.name in seconds
        )
        clock = commits.newest_clock(context.storage)
        context.recorder.write(Record(clock, time.time(), note=Note(forecast=forecast)))


def _try(context: Context, config: Config, state: TrainState, cycle: Cycle) -> None:
    """Take a span's first cycle, in which all penalties are due, until it is replayed as a graph.

    The step is the trial's own, so that its graph is gone when the group's step makes one.
    """
    alone = context.step(config, state, alone=True)
    with context.load([cycle] * (alone.settles + 1), attempt=0) as batches:
        for _ in range(alone.settles + 1):
            _wait(alone.cycle(cycle, batches))


def _rehearse_span(context: Context, step: Step, cycle: Cycle) -> float:
    """The seconds of a cycle once it takes as long as all that follow."""
    with context.load([cycle] * (step.settles + 1), attempt=0) as batches:
        for _ in range(step.settles):
            _wait(step.cycle(cycle, batches))
        start = time.perf_counter()
        _wait(step.cycle(cycle, batches))
        return time.perf_counter() - start


def _draw(context: Context, state: TrainState, cycle: Cycle) -> None:
    if context.workers.is_first:
        draw_panel(context.config, state.ema, cycle.stage, context.autocast)


def _wait(measures: Measures) -> None:
    """Reading a result waits for the device."""
    torch.stack([*measures.values()]).tolist()
