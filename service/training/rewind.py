"""After a collapse: back to the last healthy checkpoint with an amendment, or the words to end with."""

import logging

from service.collapse.detector import Verdict
from service.collapse.response import CollapseError
from service.config import resolve
from service.engine.state import TrainState, new_state
from service.training import checkpoint, scores
from service.training.session import Session

log = logging.getLogger(__name__)


def rewind(session: Session, saver: checkpoint.Checkpointer, state: TrainState) -> None:
    """Make `state` that of the last healthy checkpoint before the trouble, amended, and commit it.

    Where the trouble came back at once after a rewind, it is one before that. Without any it is the
    state of image 0. All workers take part; DataError or StorageError where it cannot be read or
    written.
    """
    before, verdict = state.plain(), Verdict(**state.monitor["verdict"])
    config, _ = session.amended(state)
    amendments = session.config.collapse.amendments
    amendment = amendments[min(state.attempt, len(amendments) - 1)]
    values = resolve(config, amendment, "collapse.amendments")
    last = before["monitor"].get("rewound_to")
    limit = last - 1 if last is not None and verdict.onset <= last else verdict.onset
    name = _go_back(session, state, limit)
    state.attempt = before["attempt"] + 1
    earlier = [(min(at, state.images), change) for at, change in before["amendments"]]
    state.amendments = [*earlier, (state.images, values)]
    protected = before["monitor"].get("protected", [])
    state.monitor |= {"protected": protected, "rewound_to": state.images}
    place = name.folder if name else "the start"
    log.warning("event=rewind from=%d to=%s amendment=%s", before["images"], place, values)
    # Told first, which a commit waits for: a crash between the two tells it again, in the same place.
    session.tell(
        state, "rewind", verdict.reason, at=before["images"], checkpoint=place, amendment=values
    )
    if session.workers.is_first:
        saver.save(state)
        saver.wait()


def _go_back(session: Session, state: TrainState, limit: int) -> checkpoint.Name | None:
    """Load the latest healthy checkpoint up to the clock `limit`, else the earliest that there is."""
    for name, tensors, manifest in checkpoint.healthy(session.storage, limit):
        session.check_same(name)
        state.load(tensors, manifest["state"])
        return name
    session.check_same(None)
    start = new_state(session.config, session.workers.device)
    state.load(start.tensors(), start.plain())
    return None


def collapse_error(session: Session, state: TrainState) -> CollapseError:
    """What to end with: the verdict, the rewinds that were tried, and the best checkpoint."""
    verdict = Verdict(**state.monitor["verdict"])
    tried = f" after {state.attempt} rewinds" if state.attempt else ""
    committed = checkpoint.find(session.storage)[0]
    best = next(
        iter(scores.rank(session.storage, committed)),
        next((name for name, *_ in checkpoint.healthy(session.storage, verdict.onset)), None),
    )
    kept = (
        f"the best checkpoint is {session.storage.url(best.folder)}"
        if best
        else "no checkpoint was made before it"
    )
    return CollapseError(
        f"collapsed at {state.images} images{tried} ({verdict.kind}): {verdict.reason}; {kept}. Start a"
        " new run with gentler settings, or go on with this one with other collapse.amendments and a"
        " higher collapse.max_rewinds"
    )
