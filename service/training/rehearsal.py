"""Runs cycles of every phase and throws them away: what would fail on day three fails now."""

import time

import torch

from service.engine.curriculum import Cycle
from service.engine.state import TrainState
from service.engine.step import Measures, Step
from service.recording.record import Note, Record, SpanTime
from service.run import checkpoint
from service.training.context import Context


def rehearse(context: Context, state: TrainState, end: int) -> None:
    """Run two cycles of every span that begins before the clock `end`; `state` is used up.

    An error names its phase. The second cycle is timed, and the forecast is recorded.
    """
    config, curriculum = context.amended(state)
    step = Step(config, state, context.workers)
    seconds: dict[str, float] = {}
    for span in curriculum.spans:
        if span.start >= end:
            break
        try:
            seconds[span.name] = _rehearse_span(context, step, curriculum.at(span.start))
        except Exception as error:
            error.add_note(f"This happened in the rehearsal of phase {span.name!r}.")
            raise
    if context.workers.is_first:
        checkpoint.copy_to_cpu(state.tensors())
        forecast = tuple(
            SpanTime(span.start, span.end, span.cycle_images, seconds[span.name])
            for span in curriculum.spans
            if span.name in seconds
        )
        clock = checkpoint.newest_clock(context.storage)
        context.recorder.write(Record(clock, time.time(), note=Note(forecast=forecast)))


def _rehearse_span(context: Context, step: Step, cycle: Cycle) -> float:
    with context.load([cycle, cycle], attempt=0) as batches:
        _wait(step.cycle(cycle, batches))
        start = time.perf_counter()
        _wait(step.cycle(cycle, batches))
        return time.perf_counter() - start


def _wait(measures: Measures) -> None:
    """Reading a result waits for the device."""
    torch.stack([*measures.values()]).tolist()
