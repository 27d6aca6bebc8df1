"""The run in MLflow: found again by its key, so that it is one run across restarts."""

import io
import itertools
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from service.errors import UsageError
from service.recording.record import Record

log = logging.getLogger(__name__)

KEY_TAG = "gan.run_key"
MAX_METRICS, MAX_PARAMS = 1000, 100  # MLflow's limits for one request
HTTP_TRIES, HTTP_TIMEOUT_S = 1, 20
# Its folder is a section of the run's page, before that of the curves.
PICTURE_KEY = "pictures/grid"


def check_no_credentials(key: str, uri: str) -> None:
    """UsageError, naming `key`, where MLflow's address holds some: it is written in many places."""
    if "@" in uri.partition("://")[2].partition("/")[0]:
        raise UsageError(
            f"{key}: holds credentials; take them out and set MLFLOW_TRACKING_USERNAME and"
            " MLFLOW_TRACKING_PASSWORD in the environment"
        )


@dataclass(frozen=True)
class Description:
    """What MLflow is told of a run once: its key and name, parameters, tags, and files of text.

    `parent` is the key of the run that it is nested below, which somebody else makes.
    """

    uri: str
    experiment: str
    artifacts: str | None
    key: str
    name: str
    parameters: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    parent: str | None = None


class MlflowLog:
    """Delivers records to MLflow. Every method may raise while the server is away, and be repeated."""

    def __init__(self, description: Description):
        # The recorder's spool does the repeating; MLflow's own would hold it up for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(HTTP_TRIES))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(HTTP_TIMEOUT_S))
        self.description = description
        self._client: Any = None
        self._run_id: str | None = None
        self._attempts: dict[int, str] = {}

    def open(self) -> str:
        """Find the run by its key, or make it, and return its id."""
        if self._run_id is None:
            import mlflow

            logging.getLogger("alembic").setLevel(logging.WARNING)
            self._client = mlflow.MlflowClient(self.description.uri)
            self._run_id = self._find(self.description.key) or self._create()
            self._client.update_run(self._run_id, status="RUNNING")
        return self._run_id

    def deliver(self, records: Iterable[Record], fetch: Any) -> None:
        """Log metrics, pictures and checkpoints; `fetch(key)` gives the bytes of a picture.

        Delivering the same records twice leaves the same run: MLflow keeps equal points once, and
        files are named after their clock.
        """
        main = self.open()
        ordered = sorted(records, key=lambda record: record.attempt)
        for attempt, group in itertools.groupby(ordered, key=lambda record: record.attempt):
            run_id, part = self._attempt(attempt), list(group)
            for batch in _chunks(_points(part), MAX_METRICS):
                self._client.log_batch(run_id, metrics=batch)
            for record in part:
                if record.picture:
                    self._log_picture(run_id, record, fetch(record.picture))
                if record.checkpoint:
                    text = json.dumps(record.checkpoint, indent=2)
                    self._client.log_text(run_id, text, f"checkpoints/{record.images:012d}.json")
                if record.event:
                    self._log_event(main, record)

    def finish(self, status: str, tags: dict[str, str]) -> None:
        """Close the run as FINISHED, FAILED or KILLED, and with it its attempts."""
        run_id = self.open()
        for key, value in tags.items():
            self._client.set_tag(run_id, key, value)
        for attempt_id in [*self._attempts.values(), run_id]:
            self._client.set_terminated(attempt_id, status)

    def _attempt(self, attempt: int) -> str:
        """The run that an attempt logs to: after a rewind a nested one, since points stay for good."""
        run_id = self.open()
        if attempt == 0:
            return run_id
        if attempt not in self._attempts:
            key = f"{self.description.key}-{attempt}"
            self._attempts[attempt] = self._find(key) or self._client.create_run(
                self._client.get_run(run_id).info.experiment_id,
                run_name=f"{self.description.name}, attempt {attempt + 1}",
                tags={"mlflow.parentRunId": run_id, KEY_TAG: key},
            ).info.run_id  # fmt: skip
        return self._attempts[attempt]

    def _log_event(self, run_id: str, record: Record) -> None:
        """In the run's timeline, and as tags the last of its kind."""
        event = record.event or {}
        self._client.set_tag(run_id, f"gan.{event['action']}", f"at {record.images}: {event['reason']}")
        text = json.dumps({"images": record.images, "attempt": record.attempt, **event}, indent=2)
        name = f"{record.images:012d}-{record.attempt}-{event['action']}"
        self._client.log_text(run_id, text, f"timeline/{name}.json")

    def _find(self, key: str) -> str | None:
        experiment = self._client.get_experiment_by_name(self.description.experiment)
        if experiment is None:
            return None
        query = f"tags.`{KEY_TAG}` = '{key}'"
        runs = self._client.search_runs([experiment.experiment_id], query, max_results=1)
        return runs[0].info.run_id if runs else None

    def _create(self) -> str:
        told = self.description
        tags = told.tags | self._nesting()
        experiment = self._client.get_experiment_by_name(told.experiment)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(told.experiment, told.artifacts)
        )
        from mlflow.entities import Param

        # The key is set last: a run that a crash left half described is not found, but made again.
        run_id = self._client.create_run(experiment_id, run_name=told.name, tags=tags).info.run_id
        parameters = [Param(key, value) for key, value in told.parameters.items()]
        for batch in _chunks(parameters, MAX_PARAMS):
            self._client.log_batch(run_id, params=batch)
        for file, text in told.texts.items():
            self._client.log_text(run_id, text, file)
        self._client.set_tag(run_id, KEY_TAG, told.key)
        return run_id

    def _nesting(self) -> dict[str, str]:
        """The tag that nests the run; LookupError, to be tried again, while its parent is not there."""
        if self.description.parent is None:
            return {}
        parent = self._find(self.description.parent)
        if parent is None:
            raise LookupError(f"the parent run {self.description.parent} is not in MLflow yet")
        return {"mlflow.parentRunId": parent}

    def _log_picture(self, run_id: str, record: Record, png: bytes) -> None:
        """As MLflow's image series do it, unless this clock's picture is there."""
        present = self._client.list_artifacts(run_id, "images")
        if any(re.search(rf"grid\Wstep\W{record.images}\W", file.path) for file in present):
            return
        image = Image.open(io.BytesIO(png))
        self._client.log_image(
            run_id,
            image,
            key=PICTURE_KEY,
            step=record.images,
            timestamp=int(record.time * 1000),
            synchronous=True,
        )


def _points(records: Iterable[Record]) -> Iterator[Any]:
    from mlflow.entities import Metric

    for record in records:
        for name, value in (record.values | record.scores).items():
            yield Metric(name, value, int(record.time * 1000), record.images)


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    items = list(items)
    for start in range(0, len(items), size):
        yield items[start : start + size]
