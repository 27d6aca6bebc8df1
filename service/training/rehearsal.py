"""What would fail on day three fails now: one cycle of every phase, and all of it thrown away."""

import time

from service.engine.curriculum import Cycle
from service.engine.state import TrainState
from service.engine.step import Step
from service.recording.record import Record
from service.training import checkpoint
from service.training.session import Session


def rehearse(session: Session, state: TrainState, end: int) -> None:
    """Two cycles of every span that the run may come to before `end`; `state` is spent by it.

    An error is told with its phase. The second cycle tells how long one takes, and the forecast is
    recorded.
    """
    config, curriculum = session.amended(state)
    step = Step(config, state, session.workers)
    seconds: dict[str, float] = {}
    for span in curriculum.spans:
        if span.start >= end:
            break
        try:
            seconds[span.name] = _rehearse_span(session, step, curriculum.at(span.start))
        except Exception as error:
            error.add_note(f"This happened in the rehearsal of phase {span.name!r}.")
            raise
    if session.workers.is_first:
        checkpoint.copy_to_cpu(state.tensors())
        forecast = [
            [s.start, s.end, s.cycle_images, seconds[s.name]]
            for s in curriculum.spans
            if s.name in seconds
        ]
        committed, _ = checkpoint.find(session.storage)
        clock = committed[-1].images if committed else 0
        session.recorder.write(Record(clock, time.time(), note={"forecast": forecast}))


def _rehearse_span(session: Session, step: Step, cycle: Cycle) -> float:
    with session.load([cycle, cycle], attempt=0) as batches:
        step.cycle(cycle, batches).tolist()
        start = time.perf_counter()
        step.cycle(cycle, batches).tolist()  # reading the result waits for the device
        return time.perf_counter() - start
