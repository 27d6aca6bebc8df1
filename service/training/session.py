"""What a worker's loop needs beside the state: data, curriculum, storage, the recorder."""

import logging
import time
from collections.abc import Iterable
from typing import Any

from service.config import Config, amend
from service.data.index import read_index
from service.data.loader import Loader
from service.engine.curriculum import Curriculum, Cycle, curriculum_of, due
from service.engine.distributed import Workers
from service.engine.state import TrainState
from service.recording.record import Record
from service.recording.recorder import RecorderClient
from service.storage import open_storage
from service.training import checkpoint, scores
from service.training.feed import check_memory, open_feeders, requests, source_of
from service.training.monitor import RealImages, panel_of

log = logging.getLogger(__name__)


class Session:
    """Opened once by each worker; use `feeders` and `real` as context managers."""

    def __init__(
        self, config: Config, workers: Workers, recorder: RecorderClient, evaluator: Any = None
    ):
        self.config, self.workers = config, workers
        self.recorder, self._evaluator = recorder, evaluator
        self._committed: checkpoint.Name | None = None
        self._scored: checkpoint.Name | None = None
        self.curriculum = Curriculum(config.phases, config.training.d_steps)
        self.storage = open_storage(config.run.dir, config.storage.retry_s, config.storage.timeout_s)
        place = open_storage(config.data.index_address, config.storage.retry_s, config.storage.timeout_s)
        source = source_of(config, read_index(place))
        check_memory(config, source, workers.count)
        self.panel = panel_of(config, source)
        self.real = RealImages(self.panel.source)
        self.feeders = open_feeders(config, source, workers.count)

    def amended(self, state: TrainState) -> tuple[Config, Curriculum]:
        """The configuration in force, and the curriculum that came of its changes."""
        config = self.config
        for _, values in state.amendments:
            config = amend(config, values)
        return config, curriculum_of(self.config, state.amendments)

    def load(self, cycles: Iterable[Cycle], attempt: int) -> Loader:
        """This worker's share of the batches of the cycles."""
        return Loader(self.feeders, requests(self.config, cycles, self.workers.share, attempt))

    def saver(self, token: int) -> checkpoint.Checkpointer:
        """What commits checkpoints, once all records up to them are safe, and tells of each."""
        settings = self.config.checkpoint
        return checkpoint.Checkpointer(
            self.storage,
            token,
            checkpoint.Keep(settings.keep, settings.keep_best),
            self.config.model_dump(),
            self.recorder.settle,
            self.tell_checkpoint,
            lambda names: scores.rank(self.storage, names),
        )

    def check_same(self, name: checkpoint.Name | None) -> None:
        """RuntimeError, so that all start again, unless the first worker found this checkpoint too."""
        sequence = name.sequence if name else 0
        first = self.workers.agree(sequence)
        if sequence != first:
            raise RuntimeError(f"loaded checkpoint {sequence}, but the first worker loaded {first}")

    def tell(self, state: TrainState, action: str, reason: str, **details: Any) -> None:
        """Record what befell the run."""
        if self.workers.is_first:
            event = {"action": action, "reason": reason, **details}
            self.recorder.write(Record(state.images, time.time(), state.attempt, event=event))

    def tell_checkpoint(self, name: checkpoint.Name, manifest: dict[str, Any]) -> None:
        """Record a committed checkpoint, its address and its files' digests; score it if that is due."""
        if self.workers.is_first:
            about = {"address": self.storage.url(name.folder), "files": manifest["files"]}
            attempt = manifest["state"]["attempt"]
            self.recorder.write(Record(name.images, time.time(), attempt, checkpoint=about))
            before, self._committed = self._committed, name
            every = self.config.evaluation.every_images
            if every and due(every, before.images if before else 0, name.images):
                self._score(name)

    def score_last(self) -> None:
        """Have the last committed checkpoint scored, unless it was."""
        if self._committed and self._committed != self._scored and self.config.evaluation.every_images:
            self._score(self._committed)

    def _score(self, name: checkpoint.Name) -> None:
        self._scored = name
        try:
            self._evaluator.evaluate.remote(name)
        except Exception as error:  # whatever becomes of the evaluator, the training goes on
            log.warning("event=evaluator_silent error=%s", error)
