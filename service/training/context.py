"""What a worker's loop needs beside the state: data, curriculum, storage, recorder and scorer."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from service.config import Config
from service.data.index import read_index
from service.data.loader import Loader
from service.engine.curriculum import Curriculum, Cycle, curriculum_of, due
from service.engine.distributed import Workers
from service.engine.panel import panel_columns
from service.engine.state import TrainState
from service.engine.step import Step
from service.errors import DataError
from service.recording.pictures import LEAST_SHOWN_PIXELS, GridLook
from service.recording.record import Event, EventAction, Record
from service.recording.recorder import Leaving, RecorderClient
from service.run import checkpoint, commits, ranking
from service.scoring.actor import ScorerClient
from service.storage import open_storage
from service.training.feed import (
    check_memory,
    dataset_of,
    label_counts,
    open_feeders,
    requests,
)
from service.training.heart import Heart
from service.training.memory import Memory
from service.training.monitor import PanelReader, panel_of
from service.training.pace import Pace
from service.training.relay import Relay
from service.weights import start


class Context:
    """Opened once by each worker; use `feeders`, `real` and `heart` as context managers."""

    def __init__(
        self,
        config: Config,
        workers: Workers,
        token: int,
        recorder: RecorderClient,
        scorer: ScorerClient | None = None,
        node_is_leaving: Callable[[], bool] | None = None,
    ):
        self.config, self.workers = config, workers
        self._token, self._node_is_leaving = token, node_is_leaving
        self.recorder, self._scorer = recorder, scorer
        self._committed: commits.Name | None = None
        self._scored: commits.Name | None = None
        self.curriculum = curriculum_of(config)
        self.storage = open_storage(config.run.dir, config.storage.retry_s, config.storage.timeout_s)
        self.relay = Relay(self.storage, workers)
        self.memory = Memory(config, workers)
        place = open_storage(config.data.index_address, config.storage.retry_s, config.storage.timeout_s)
        dataset = dataset_of(config, read_index(place))
        check_memory(config, dataset, workers.count)
        self._label_counts = label_counts(config, dataset)
        self.panel = panel_of(config, dataset)
        columns = panel_columns(config)
        self.grid_look = GridLook(
            columns,
            max(LEAST_SHOWN_PIXELS, config.model.resolution),
            dataset.index.about.classes[:columns] if config.model.classes else (),
        )
        self.real = PanelReader(self.panel.dataset)
        self.pace = Pace(workers.device)
        self.feeders = open_feeders(config, dataset, workers.count)
        self.heart = Heart(recorder, token, workers.index, config, self.feeders)

    def step(self, config: Config, state: TrainState, alone: bool = False) -> Step:
        """What takes the cycles of a state, among all workers or `alone`."""
        workers = self.workers.alone() if alone else self.workers
        return Step(config, state, workers, self.memory.most, self._label_counts)

    @property
    def autocast(self) -> torch.autocast:
        """The precision of the training, for what is drawn beside it."""
        bf16 = self.config.training.precision == "bf16"
        return torch.autocast(self.workers.device.type, torch.bfloat16, enabled=bf16)

    def leaving(self) -> Leaving:
        """Whether to stop: a node is about to go, or the driver wishes it; the same on all workers."""
        if self._node_is_leaving and self._node_is_leaving():  # Ray's answer is for the whole group
            return Leaving.AT_LOOK
        asked = self.recorder.leaving() if self.workers.is_first else Leaving.NO
        return Leaving(self.workers.agree(asked))

    def is_late(self, saved_at: float) -> bool:
        """Whether the last checkpoint, of `saved_at`, is too old; the same on all workers."""
        every_s = self.config.checkpoint.every_s
        if every_s is None:
            return False
        return bool(self.workers.agree(int(time.monotonic() >= saved_at + every_s)))

    def amended(self, state: TrainState) -> tuple[Config, Curriculum]:
        """The configuration in force after the state's amendments, and its curriculum."""
        config = self.config
        try:
            for _, values in state.amendments:
                config = config.amended(values)
        except ValueError as error:
            raise DataError(
                f"{self.storage.address}: a rewind's amendments are invalid ({error}); go back to an"
                " earlier checkpoint, or start a new run elsewhere"
            ) from error
        return config, curriculum_of(self.config, state.amendments)

    def follow_first(self, state: TrainState) -> None:
        """Make the weights those of the first worker: hosts round their linear algebra differently."""
        self.workers.follow_(tensor for part in state.weights() for tensor in part)

    def take_given(self, state: TrainState) -> None:
        """Give the networks of a state at image 0 what `run.init` names; nothing without it."""
        if self.config.run.init:
            start.take(self.relay, state)
            self.follow_first(state)

    def load(self, cycles: Iterable[Cycle], attempt: int) -> Loader:
        """This worker's share of the batches of the cycles."""
        return Loader(self.feeders, requests(self.config, cycles, self.workers.share, attempt))

    def saver(self) -> checkpoint.Checkpointer:
        """Commits checkpoints, each after all earlier records are safe, and records it."""
        settings = self.config.checkpoint
        return checkpoint.Checkpointer(
            self.storage,
            self._token,
            checkpoint.Keep(settings.keep, settings.keep_best),
            self.config.model_dump(),
            self.recorder.settle,
            self.record_checkpoint,
            lambda names: ranking.rank(self.storage, names),
        )

    def record_event(self, state: TrainState, action: EventAction, reason: str, **details: Any) -> None:
        """Record what happened to the run; only the first worker does."""
        if self.workers.is_first:
            event = Event(action, reason, details)
            self.recorder.write(Record(state.clock, time.time(), state.attempt, event=event))

    def record_checkpoint(
        self, name: commits.Name, manifest: commits.Manifest, seconds: float | None = None
    ) -> None:
        """Record a committed checkpoint with its files' digests; request its score if that is due.

        `seconds` is how long it took to make, unless it was there already.
        """
        if self.workers.is_first:
            files: Any = manifest.model_dump(include={"files", "due"})
            committed = {"address": self.storage.url(name.folder)} | files
            attempt = manifest.state.attempt
            values = {"checkpoint_bytes": float(sum(file.bytes for file in manifest.files.values()))}
            if seconds is not None:
                values["checkpoint_seconds"] = seconds
            self.recorder.write(Record(name.clock, time.time(), attempt, values, checkpoint=committed))
            if not manifest.due:
                return
            before, self._committed = self._committed, name
            every = self.config.evaluation.every_images
            if every and due(every, before.clock if before else 0, name.clock):
                self._score(name)

    def score_last(self) -> None:
        """Request a score for the last committed checkpoint, unless it has one."""
        if self._committed and self._committed != self._scored and self.config.evaluation.every_images:
            self._score(self._committed)

    def _score(self, name: commits.Name) -> None:
        self._scored = name
        if self._scorer:
            self._scorer.score(name)
