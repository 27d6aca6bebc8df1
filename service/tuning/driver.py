"""The driver of one trial: a process that does what `service.train` does, for the trial's settings.

It is a Ray job of its own, so that Ray takes its workers back however it ends. It reads its job from the
first line of stdin. When stdin closes, because the trial asks it to stop or is gone, it stops in order.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from service.cli import run_command
from service.collapse.response import CollapseError
from service.config import Config
from service.driver.launch import launch
from service.errors import TrainingError
from service.run import commits, ranking
from service.storage import open_storage
from service.storage.lock import LEASE_S

COLLAPSED = 4
"""Exit code of a training that collapsed; all others are those of every command."""
STOP_LIMIT_S = 90.0
LOCK_LIMIT_S = LEASE_S + STOP_LIMIT_S
OUTPUT_CHARACTERS = 2000
_ROOT = Path(__file__).parents[2]


def main(arguments: Sequence[str]) -> None:
    """Parse, build, run, close."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_stop_with_stdin, name="stdin", daemon=True).start()
    try:
        config = Config(**job["config"])
        # an earlier driver of this trial may still be stopping
        launch(config, job["parent"], patience_s=LOCK_LIMIT_S)
        _score_last(config)
    except TrainingError as error:
        if not isinstance(error.__cause__, CollapseError):
            raise
        print(error, file=sys.stderr)
        sys.exit(COLLAPSED)


def _score_last(config: Config) -> None:
    """Score the last checkpoint if the driver that committed it died before the score came."""
    storage = open_storage(config.run.dir, config.storage.retry_s)
    last = commits.find(storage)[0][-1]
    if not ranking.read(storage, [last]):
        from service.run.best import load
        from service.scoring.scorer import Scorer

        scorer = Scorer(config, config.evaluation, storage)
        ranking.write(storage, last, scorer.score(load(storage.url(last.folder))))


def _stop_with_stdin() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_LIMIT_S)  # if Ray is away, closing may take for ever
    os._exit(1)


class Driver:
    """The driver, seen from its trial."""

    def __init__(self, config: Config, parent: str):
        # open as long as the driver lives
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "service.tuning.driver"],
            cwd=_ROOT,
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its exit code says more
            print(json.dumps({"config": config.model_dump(), "parent": parent}),
                  file=self._process.stdin, flush=True)  # fmt: skip

    def wait(self, limit_s: float) -> int | None:
        """Wait up to `limit_s` for the exit code; None while it runs."""
        try:
            return self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """Ask it to stop, and wait until it has released all that it held."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        if self.wait(2 * STOP_LIMIT_S) is None:
            self._process.kill()
            self._process.wait()

    def output(self) -> str:
        """The end of what it printed."""
        self._log.seek(0)
        return self._log.read()[-OUTPUT_CHARACTERS:].strip()


def _environment() -> dict[str, str]:
    """This node's environment, with the cluster's address and the files of the submitted job."""
    context = ray.get_runtime_context()
    job: dict[str, Any] = {"runtime_env": dict(context.runtime_env)}
    return os.environ | {
        "RAY_ADDRESS": context.gcs_address,
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job),
    }


if __name__ == "__main__":
    run_command(main)
