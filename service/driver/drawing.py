"""Images in bulk, drawn by Ray actors that share the work."""

import collections
import contextlib
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import ray
import torch

from service.driver.join import joined
from service.errors import ServiceError
from service.generation.images import Portions, Spread
from service.recording.pictures import Pixels

log = logging.getLogger(__name__)

PATIENCE_S = 60.0
RETRIES = 3
AHEAD = 3
"""So many portions of each actor are drawn before they are written."""


class _Drawer:
    """Draws portions, on one core, as every portion is drawn."""

    def __init__(self, portions: Portions):
        torch.set_num_threads(1)
        self._portions = portions

    def begin(self) -> None:
        """Answer as soon as it runs."""

    def draw(self, portion: int) -> Pixels:
        return self._portions.draw(portion)


@contextlib.contextmanager
def drawn_by(workers: int) -> Iterator[Spread]:
    """What spreads portions over so many actors, of a CPU each, on the nodes of the Ray that is joined.

    Those that get no CPU in a minute are done without. An actor that is lost is started again, and what
    it was drawing is drawn again, some times.
    """
    with joined(workers):
        yield lambda portions, chosen: _spread(portions, chosen, workers)


def _spread(portions: Portions, chosen: range, workers: int) -> Iterator[Pixels]:
    drawer: Any = ray.remote(num_cpus=1, max_restarts=RETRIES, max_task_retries=RETRIES)(_Drawer)
    shared = ray.put(portions)
    drawers = [drawer.remote(shared) for _ in range(min(workers, len(chosen)))]
    asked = {each.begin.remote(): each for each in drawers}
    waiting: collections.deque[Any] = collections.deque()
    try:
        begun, _ = ray.wait([*asked], num_returns=len(asked), timeout=PATIENCE_S)
        actors = [asked[answer] for answer in begun]
        if not actors:
            raise ServiceError(
                f"--workers {workers}: none got a CPU in {PATIENCE_S:g} s; free some, or leave it out"
            )
        if len(actors) < len(asked):
            log.warning("event=fewer_drawers asked=%d begun=%d", len(asked), len(actors))
        for portion, actor in zip(chosen, itertools.cycle(actors), strict=False):
            waiting.append(actor.draw.remote(portion))
            if len(waiting) >= AHEAD * len(actors):
                yield ray.get(waiting.popleft())
        while waiting:
            yield ray.get(waiting.popleft())
    except ray.exceptions.RayError as error:
        raise ServiceError(f"drawing over Ray failed: {error}; see Ray's logs, and try again") from error
    finally:
        for actor in drawers:
            ray.kill(actor)
