"""The sweep's own run in MLflow; its trials' runs are nested in it."""

import logging
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from service.config.identity import flatten
from service.config.yaml import to_yaml
from service.driver.provenance import provenance
from service.recording.mlflow import Description, MlflowLog
from service.recording.status import Status
from service.run.directory import SWEEP_KEY
from service.tuning.plan import Plan

log = logging.getLogger(__name__)

RETRY_S = 5.0


class Parent:
    """Created as soon as MLflow answers, and closed with the sweep; use as a context manager."""

    def __init__(self, plan: Plan, key: str):
        self._log = MlflowLog(_description(plan, key))
        self._open = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._make, name="mlflow-parent", daemon=True)

    def __enter__(self) -> "Parent":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        status: Status = "KILLED" if interrupted else "FAILED" if kind else "FINISHED"
        try:
            with self._open:
                self._log.finish(status, {})
        except Exception as failure:
            log.warning("event=sweep_not_closed status=%s error=%s", status, failure)

    def run_id(self) -> str:
        """The run's id; raises MLflow's own errors while it is away."""
        with self._open:
            return self._log.open()

    def publish(self, files: dict[str, bytes], metrics: dict[str, float], tags: dict[str, str]) -> None:
        """Log the sweep's results in place of earlier ones; raises while MLflow is away."""
        import mlflow

        client, run_id = mlflow.MlflowClient(self._log.description.uri), self.run_id()
        with tempfile.TemporaryDirectory() as folder:
            for name, data in files.items():
                (Path(folder) / name).write_bytes(data)
            client.log_artifacts(run_id, folder)
        for name, value in metrics.items():
            client.log_metric(run_id, name, value)
        for name, text in tags.items():
            client.set_tag(run_id, name, text)

    def _make(self) -> None:
        """Create the run. Until then, the trials' records wait in their spools."""
        trouble = ""
        while not self._stop.is_set():
            try:
                self.run_id()
                return
            except Exception as error:
                if str(error) != trouble:
                    log.warning("event=tracking_failed kept_in_spool=true error=%s", error)
                trouble = str(error)
            self._stop.wait(RETRY_S)


def _description(plan: Plan, key: str) -> Description:
    swept = {f"space.{name}": str(values) for name, values in plan.space.to_plain().items()}
    searched = {f"search.{name}": str(value) for name, value in asdict(plan.search).items()}
    settings: dict[str, Any] = flatten(plan.config.model_dump())
    fixed = {name: str(value) for name, value in settings.items() if name not in plan.space.keys}
    local = plan.config.tracking.uri is None
    return Description(
        uri=plan.config.tracking_uri,
        experiment=plan.config.tracking.experiment,
        artifacts=(Path(plan.dir) / "artifacts").as_uri() if local else None,
        key=key,
        name=plan.dir.rstrip("/").rpartition("/")[2],
        parameters=swept | searched | fixed,
        tags={"sweep.dir": plan.dir, **provenance()},
        texts={"config.yaml": to_yaml(plan.config), SWEEP_KEY: plan.storage.get(SWEEP_KEY).decode()},
    )
