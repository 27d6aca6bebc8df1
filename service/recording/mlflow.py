"""The run in MLflow. It is found again by its key, so that it stays one run across restarts."""

import io
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, UnidentifiedImageError

from service.errors import UsageError
from service.recording.record import Event, Record, Refusal
from service.recording.status import Status
from service.storage import MissingError

log = logging.getLogger(__name__)

"""How a run ended, in MLflow's words."""

KEY_TAG, DESCRIBED_TAG = "gan.run_key", "gan.described"
MAX_METRICS, MAX_PARAMS = 1000, 100  # MLflow's limits for one request
HTTP_TRIES, HTTP_TIMEOUT_S = 1, 20
REFUSALS = (400, 413, 422)  # HTTP's words for a request that is at fault itself
# MLflow shows the folder as a section of the run's page, before the curves.
PICTURE_KEY = "pictures/grid"


@dataclass(frozen=True)
class Description:
    """What MLflow records of a run once: its key and name, parameters, tags, and text files.

    `parent` is the key of the run that it is nested in; that run is created elsewhere.
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


def limit_requests() -> None:
    """Keep MLflow's own retries from blocking for minutes, unless the environment says otherwise."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(HTTP_TRIES))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(HTTP_TIMEOUT_S))


def check_store(uri: str, experiment: str) -> None:
    """UsageError if no run can ever be recorded there, with the remedy.

    A server that does not answer now may do so later: the recorder's spool waits for it.
    """
    limit_requests()
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        found = mlflow.MlflowClient(uri).get_experiment_by_name(experiment)
    except ImportError as error:
        raise UsageError(
            f"tracking.uri: {uri} needs the Python package {error.name}; install it, here and on the"
            " cluster's nodes"
        ) from error
    except mlflow.MlflowException as error:
        if remedy := _lasting(error):
            answer = str(error).partition("\n")[0].strip()
            raise UsageError(f"tracking.uri: {uri} takes no runs ({answer}); {remedy}") from error
        log.warning("event=tracking_away uri=%s error=%s", uri, error)
        return
    except Exception as error:  # a database's own: it may be starting
        log.warning("event=tracking_away uri=%s error=%s", uri, error)
        return
    if found is not None and found.lifecycle_stage == "deleted":
        raise UsageError(
            f"tracking.experiment: {experiment} was deleted at {uri}; restore it with mlflow experiments"
            f" restore --experiment-id {found.experiment_id}, or choose another name"
        )


def _lasting(error: Any) -> str:
    """What to do about an answer that no waiting changes; "" if waiting may help."""
    status = error.get_http_status_code()
    if "valid JSON" in str(error):
        return "correct the address: what answers there is no MLflow server"
    if status in (401, 403):
        return "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    if status in (400, 404):
        return "give the http(s):// address of an MLflow server, or sqlite:///FILE"
    return ""


class MlflowLog:
    """Delivers records to MLflow. Any method may raise while the server is away, and may be repeated."""

    def __init__(self, description: Description):
        limit_requests()  # the recorder's spool retries
        self.description = description
        self._client: Any = None
        self._run_id: str | None = None
        self._attempts: dict[int, str] = {}
        self._described = False

    def open(self) -> str:
        """Find the run by its key, or create it, and return its id."""
        if self._run_id is None:
            import mlflow

            logging.getLogger("alembic").setLevel(logging.WARNING)
            self._client = mlflow.MlflowClient(self.description.uri)
            run_id = self._find(self.description.key) or self._create()
            self._log_parameters(run_id)
            self._client.update_run(run_id, status="RUNNING")
            self._run_id = run_id
        return self._run_id

    def log_points(self, records: Iterable[Record]) -> list[Refusal]:
        """Log the values of all curves, and return what MLflow refuses to take.

        MLflow keeps equal points once, so the same records may come again.
        """
        refusals: list[Refusal] = []
        ordered = sorted(records, key=lambda record: record.attempt)
        for attempt, group in itertools.groupby(ordered, key=lambda record: record.attempt):
            run_id = self._attempt(attempt)
            for batch in _chunks(_points(group), MAX_METRICS):
                self._log_batch(run_id, batch, refusals)
        return refusals

    def log_files(self, records: Iterable[Record], fetch: Callable[[str], bytes]) -> list[Refusal]:
        """Log pictures, checkpoints and events, and return what cannot be logged.

        `fetch(key)` gives the bytes of a picture, or a MissingError if it is gone. Files are named after
        their clock, so the same records may come again.
        """
        self._log_texts()
        refusals = []
        for record in records:
            run_id = self._attempt(record.attempt)
            for what, act in self._files(run_id, record, fetch):
                try:
                    act()
                except Exception as error:
                    gone = isinstance(error, MissingError | UnidentifiedImageError)
                    if not (gone or self._refuses(run_id, error)):
                        raise
                    refusals.append(Refusal(record=record, what=what, reason=_first_line(error)))
        return refusals

    def _files(
        self, run_id: str, record: Record, fetch: Callable[[str], bytes]
    ) -> Iterator[tuple[str, Callable[[], object]]]:
        """What there is to log of a record, by name."""
        if record.picture:
            key = record.picture
            yield "picture", lambda: self._log_picture(run_id, record, fetch(key))
        if record.checkpoint:
            text, file = json.dumps(record.checkpoint, indent=2), f"checkpoints/{record.clock:012d}.json"
            yield "checkpoint", lambda: self._client.log_text(run_id, text, file)
        if record.event:
            event = record.event
            yield f"event-{event.action}", lambda: self._log_event(self.open(), record, event)

    def _refuses(self, run_id: str, error: Exception) -> bool:
        """Whether MLflow will take no such thing later either; a deleted run may be restored."""
        import requests
        from mlflow.exceptions import MlflowException

        status = 0
        if isinstance(error, MlflowException):
            status = error.get_http_status_code()
        elif isinstance(error, requests.HTTPError) and error.response is not None:
            status = error.response.status_code
        if status not in REFUSALS:
            return False
        return self._client.get_run(run_id).info.lifecycle_stage == "active"

    def _log_batch(self, run_id: str, points: list[tuple[Record, Any]], refusals: list[Refusal]) -> None:
        """Log points; of a batch that is refused, each half by itself, down to the point at fault."""
        try:
            self._client.log_batch(run_id, metrics=[metric for _, metric in points])
        except Exception as error:
            if not self._refuses(run_id, error):
                raise
            if len(points) == 1:
                record, metric = points[0]
                refusals.append(Refusal(record=record, what=metric.key, reason=_first_line(error)))
                return
            middle = len(points) // 2
            for half in (points[:middle], points[middle:]):
                self._log_batch(run_id, half, refusals)

    def finish(self, status: Status, tags: dict[str, str]) -> None:
        """Close the run as FINISHED, FAILED or KILLED, and with it its attempts."""
        self._log_texts()
        run_id = self.open()
        for key, value in tags.items():
            self._client.set_tag(run_id, key, value)
        for attempt_id in [*self._attempts.values(), run_id]:
            self._client.set_terminated(attempt_id, status)

    def log_page(self, png: bytes, file: str) -> None:
        """Log a picture of the whole run in place of the last one; a refusal costs a warning."""
        run_id = self.open()
        try:
            self._client.log_image(run_id, Image.open(io.BytesIO(png)), artifact_file=file)
        except Exception as error:
            if not self._refuses(run_id, error):
                raise
            log.warning("event=page_refused file=%s error=%s", file, _first_line(error))

    def _attempt(self, attempt: int) -> str:
        """The attempt's run: a nested one after a rewind, because MLflow cannot take points back."""
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

    def _log_event(self, run_id: str, record: Record, event: Event) -> None:
        """Log an event to the run's timeline, and as a tag that holds the last of its kind."""
        self._client.set_tag(run_id, f"gan.{event.action}", f"at {record.clock}: {event.reason}")
        head = {"clock": record.clock, "attempt": record.attempt, "action": event.action}
        text = json.dumps(head | {"reason": event.reason} | event.details, indent=2)
        name = f"{record.clock:012d}-{record.attempt}-{event.action}"
        self._client.log_text(run_id, text, f"timeline/{name}.json")

    def _find(self, key: str) -> str | None:
        experiment = self._client.get_experiment_by_name(self.description.experiment)
        if experiment is None:
            return None
        query = f"tags.`{KEY_TAG}` = '{key}'"
        runs = self._client.search_runs([experiment.experiment_id], query, max_results=1)
        return runs[0].info.run_id if runs else None

    def _create(self) -> str:
        described = self.description
        tags = described.tags | self._nesting()
        experiment = self._client.get_experiment_by_name(described.experiment)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(described.experiment, described.artifacts)
        )
        # with its key from the first, so that no crash leaves a run that nobody finds again
        tags[KEY_TAG] = described.key
        return self._client.create_run(experiment_id, run_name=described.name, tags=tags).info.run_id

    def _log_parameters(self, run_id: str) -> None:
        """Log the parameters, once; after a crash, those that are missing."""
        from mlflow.entities import Param

        there = self._client.get_run(run_id).data
        self._described = DESCRIBED_TAG in there.tags
        if self._described:
            return
        given = self.description.parameters
        parameters = [Param(key, given[key]) for key in sorted(given.keys() - there.params.keys())]
        for batch in _chunks(parameters, MAX_PARAMS):
            self._client.log_batch(run_id, params=batch)

    def _log_texts(self) -> None:
        """Log the texts, once; after a crash, all of them again."""
        run_id = self.open()
        if self._described:
            return
        for file, text in self.description.texts.items():
            self._client.log_text(run_id, text, file)
        self._client.set_tag(run_id, DESCRIBED_TAG, "yes")
        self._described = True

    def _nesting(self) -> dict[str, str]:
        """The tag that nests the run; LookupError while its parent does not exist yet."""
        if self.description.parent is None:
            return {}
        parent = self._find(self.description.parent)
        if parent is None:
            raise LookupError(f"the parent run {self.description.parent} is not in MLflow yet")
        return {"mlflow.parentRunId": parent}

    def _log_picture(self, run_id: str, record: Record, png: bytes) -> None:
        """Log the picture as MLflow's image series do, unless this clock has one."""
        present = self._client.list_artifacts(run_id, "images")
        if any(re.search(rf"grid\Wstep\W{record.clock}\W", file.path) for file in present):
            return
        image = Image.open(io.BytesIO(png))
        self._client.log_image(
            run_id,
            image,
            key=PICTURE_KEY,
            step=record.clock,
            timestamp=int(record.time * 1000),
            synchronous=True,
        )


def _points(records: Iterable[Record]) -> Iterator[tuple[Record, Any]]:
    """Each record with each of its values, as MLflow's metric."""
    from mlflow.entities import Metric

    for record in records:
        for name, value in (record.values | record.scores).items():
            yield record, Metric(name, value, int(record.time * 1000), record.clock)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    items = list(items)
    for start in range(0, len(items), size):
        yield items[start : start + size]
