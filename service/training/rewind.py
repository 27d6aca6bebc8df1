"""After a collapse: back to the last healthy checkpoint, with an amendment."""

import dataclasses
import logging

from service.collapse.state import Kind
from service.config import Config
from service.config.amendments import augment_more, resolve
from service.engine.plain import PlainState
from service.engine.state import TrainState, new_state
from service.recording.record import EventAction
from service.run import checkpoint, commits
from service.training.context import Context

log = logging.getLogger(__name__)


def rewind(context: Context, saver: checkpoint.Checkpointer, state: TrainState) -> None:
    """Make `state` that of the last healthy checkpoint before the trouble, amended, and commit it.

    If the trouble came back right after a rewind, go back further than that rewind did. Without any
    healthy checkpoint, go back to clock 0. All workers take part. DataError or StorageError if a
    checkpoint cannot be read or written.
    """
    before = state.plain()
    config, _ = context.amended(state)
    values = _valid(config, _amendment(context, config, state))
    name = _go_back(context, state, _limit(before))
    earlier = ((min(at, state.clock), change) for at, change in before.amendments)
    state.attempt = before.attempt + 1
    state.amendments = (*earlier, (state.clock, values))
    state.collapse = dataclasses.replace(
        state.collapse, protected=before.collapse.protected, rewound_to=state.clock
    )
    place = name.folder if name else "the start"
    log.warning("event=rewind from=%d to=%s amendment=%s", before.clock, place, values)
    # Recorded first, because a commit waits for records: after a crash between the two, the same event
    # is recorded again.
    context.record_event(
        state,
        EventAction.REWIND,
        before.collapse.verdict.reason,
        at=before.clock,
        checkpoint=place,
        amendment=values,
    )
    if context.workers.is_first:
        saver.save(state)
        saver.wait()


def _amendment(context: Context, config: Config, state: TrainState) -> dict[str, float]:
    """The settings that this rewind changes: the next amendment's, or the last one's again.

    Where D learns its images by heart, other amendments help.
    """
    amendments, overfit = context.config.collapse.amendments, context.config.collapse.overfit_amendment
    if state.collapse.verdict.kind is Kind.D_OVERFIT:
        if overfit is not None:
            return resolve(config.training, overfit, "collapse.overfit_amendment")
        if more := augment_more(config.training):
            return more
    number = min(state.attempt, len(amendments) - 1)
    return resolve(config.training, amendments[number], f"collapse.amendments[{number}]")


def _valid(config: Config, values: dict[str, float]) -> dict[str, float]:
    """The values; none, with a line in the log, if they are out of bounds: a factor may repeat."""
    try:
        config.amended(values)
    except ValueError as error:
        log.warning("event=amendment_out_of_bounds values=%s error=%s", values, error)
        return {}
    return values


def _limit(before: PlainState) -> int:
    """The latest clock that a checkpoint to go back to may have."""
    last, onset = before.collapse.rewound_to, before.collapse.verdict.onset
    return last - 1 if last is not None and onset <= last else onset


def _go_back(context: Context, state: TrainState, limit: int) -> commits.Name | None:
    """Load the latest healthy checkpoint up to the clock `limit`, or else the earliest one after it."""
    for name, tensors, manifest in checkpoint.healthy(context.relay, limit):
        state.load(tensors, manifest.state)
        return name
    start = new_state(context.config, context.workers.device)
    context.take_given(start)
    state.load(start.tensors(), start.plain())
    return None
