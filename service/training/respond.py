"""Carries a response out: the one place where a verdict has consequences."""

import dataclasses

from service.collapse.response import CollapseError, Response
from service.engine.state import TrainState
from service.recording.record import EventAction
from service.run import checkpoint, commits, ranking
from service.training.context import Context
from service.training.rewind import rewind


def carry_out(
    response: Response, context: Context, state: TrainState, saver: checkpoint.Checkpointer
) -> bool:
    """Carry the response out; False if a rewind has put the state back.

    All workers take part. CollapseError if the run must stop.
    """
    verdict = state.collapse.verdict
    match response:
        case Response.ALERT:
            _record(context, state, EventAction.ALERT)
        case Response.PROTECT:
            name = _protect(context, state)
            kept = {"checkpoint": name.folder} if name else {}
            _record(context, state, EventAction.PROTECT, **kept)
        case Response.REWIND:
            saver.wait()
            rewind(context, saver, state)
            return False
        case Response.STOP:
            saver.wait()
            raise CollapseError(_last_words(context, state, verdict.onset))
    return True


def _record(context: Context, state: TrainState, action: EventAction, **details: str) -> None:
    verdict = state.collapse.verdict
    described = {"level": verdict.level.value, "kind": verdict.kind.value if verdict.kind else ""}
    context.record_event(state, action, verdict.reason, **described, **details)


def _protect(context: Context, state: TrainState) -> commits.Name | None:
    """Keep the last healthy checkpoint for good; the first worker, which saves, remembers it."""
    if not context.workers.is_first:
        return None
    name = _last_healthy(context, state.collapse.verdict.onset)
    if name:
        protected = (*state.collapse.protected, name.folder)
        state.collapse = dataclasses.replace(state.collapse, protected=protected)
    return name


def _last_healthy(context: Context, onset: int) -> commits.Name | None:
    return next((name for name, *_ in checkpoint.healthy(context.storage, onset)), None)


def _last_words(context: Context, state: TrainState, onset: int) -> str:
    """The message of a run's end: the verdict, the rewinds that were tried, the best checkpoint."""
    verdict, storage = state.collapse.verdict, context.storage
    after = f" after {state.attempt} rewinds" if state.attempt else ""
    ranked = ranking.rank(storage, commits.find(storage)[0])
    best = ranked[0] if ranked else _last_healthy(context, onset)
    kept = (
        f"the best checkpoint is {storage.url(best.folder)}"
        if best
        else "no checkpoint was saved before it"
    )
    return (
        f"collapsed at {state.clock} images{after} ({verdict.kind}): {verdict.reason}; {kept}. Start a"
        " new run with gentler settings, or continue this one with other collapse.amendments and a"
        " higher collapse.max_rewinds"
    )
