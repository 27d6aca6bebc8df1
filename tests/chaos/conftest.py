"""A cluster to break: a head without CPUs, two nodes of one, S3 and MLflow; and runs to break it under.

What is measured is printed (`make chaos` shows it), never asserted.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import torch
import yaml
from mlflow.entities import Run as MlflowRun

from cluster.local import BUCKET, Stack
from service import pack
from service.run import checkpoint, commits
from service.storage import open_storage
from tests.conftest import ROOT, tiny_values

os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "1"  # nodes are reclaimed here

IMAGES = 2560
SAVE_EVERY, LOOK_EVERY = 160, 80
LIMIT_S = 400
NODES = ("node-1", "node-2")
TOLERANCE = 1e-6


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All of it real, its addresses and keys in the environment."""
    stack = Stack.load(tmp_path_factory.mktemp("chaos"))
    with pytest.MonkeyPatch.context() as patch:
        try:
            bring_nodes(stack)
            for name, value in stack.environment.items():
                patch.setenv(name, value)
            yield stack
        finally:
            stack.down()


def bring_nodes(stack: Stack) -> None:
    """Start what is not there of the cluster: a node that was killed comes back as another."""
    stack.up(["s3", "mlflow", "ray"], nodes=2, head_cpus=0)


@pytest.fixture(scope="session")
def data(cluster: Stack) -> str:
    """The digits, packed into S3."""
    address = f"s3://{BUCKET}/digits"
    pack.main(["digits", address, "--channels", "gray"])
    return address


class ChaosRun:
    """A run in S3, its command and what became of it. As a context manager it ends what is left."""

    def __init__(
        self,
        name: str,
        folder: Path,
        data: str,
        address: str = "",
        inside: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        **sections: dict[str, Any],
    ):
        """`inside` makes its command run somewhere else, with more variables in its `environment`."""
        self._inside, self._environment = [*inside], dict(environment or {})
        self.address = address or f"s3://{BUCKET}/runs/{name}"
        self.storage = open_storage(self.address, retry_s=60)
        self.log = folder / f"{name}.log"
        self.config = folder / f"{name}.yaml"
        self._driver: subprocess.Popen[bytes] | None = None
        there = os.environ | self._environment
        values = tiny_values(
            data,
            self.address,
            run={"images": IMAGES},
            tracking={"every_images": LOOK_EVERY, "uri": there.get("MLFLOW_TRACKING_URI") or None},
            **({"checkpoint": {"every_images": SAVE_EVERY, "keep": 1000}} | sections),
        )
        self.config.write_text(yaml.safe_dump(values))

    def __enter__(self) -> "ChaosRun":
        return self

    def __exit__(self, *_: object) -> None:
        if self._driver and self._driver.poll() is None:
            self.kill()

    def submit(self, *flags: str) -> None:
        """The same command, again and again."""
        command = [*self._inside, sys.executable, "-m", "service.train"]
        command += ["--config", str(self.config), *flags]
        with open(self.log, "ab") as out:
            self._driver = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"LOG_LEVEL": "INFO"} | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """SIGKILL to the driver."""
        assert self._driver is not None
        self._driver.send_signal(signal.SIGKILL)
        self._driver.wait()

    def terminate(self) -> None:
        """SIGTERM to the driver."""
        assert self._driver is not None
        self._driver.terminate()

    def end(self) -> int:
        """The exit code, once it has ended."""
        assert self._driver is not None
        return self._driver.wait(LIMIT_S)

    def output(self) -> str:
        """All that the driver has written, of every submission."""
        return self.log.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Until it holds, while the driver lives; prints how long that took."""
        assert self._driver is not None
        start = time.monotonic()
        while not condition():
            assert self._driver.poll() is None, self.output()
            assert time.monotonic() < start + LIMIT_S, f"{what}\n{self.output()}"
            time.sleep(0.05)
        tell(f"{what}: {time.monotonic() - start:.1f} s")

    def committed(self) -> list[commits.Name]:
        """The last commit of each clock, in their order."""
        return commits.find(self.storage)[0]

    def clock(self) -> int:
        """That of the last commit."""
        committed = self.committed()
        return committed[-1].clock if committed else 0

    def groups(self) -> list[tuple[int, int]]:
        """Of each group of workers that was asked for: how many, and from which clock."""
        fits = re.findall(r"event=fit workers=(\d+) clock=(\d+)", self.output())
        return [(int(workers), int(clock)) for workers, clock in fits]

    def live(self, name: str) -> float:
        """A value at the run's /metrics."""
        address = re.findall(r"live values at (\S+)", self.output())[-1]
        with urllib.request.urlopen(address, timeout=LIMIT_S) as answer:
            (value,) = re.findall(rf"(?m)^gan_{name}{{.*}} (\S+)$", answer.read().decode())
        return float(value)

    def final(self) -> tuple[checkpoint.Tensors, commits.Manifest]:
        """The last checkpoint's tensors and manifest, verified."""
        return checkpoint.read(self.storage, self.committed()[-1])

    def mlflow_runs(self) -> tuple[MlflowRun, list[MlflowRun]]:
        """The run in MLflow, and those nested in it."""
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name("gan-training")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        (parent,) = (run for run in runs if run.data.tags.get("run.dir") == self.address)
        tag = "mlflow.parentRunId"
        return parent, [run for run in runs if run.data.tags.get(tag) == parent.info.run_id]


@pytest.fixture
def run(request, tmp_path, data) -> Iterator[ChaosRun]:
    """A run of as many workers as there are nodes, named after the test's file."""
    with ChaosRun(request.path.stem, tmp_path, data, **CONFIG) as run:
        yield run


# In float64 another number of workers rounds differently by too little to grow into something.
CONFIG = {"scale": {"workers": "1:2", "grow_after_s": 2}, "training": {"precision": "fp64"}}


@pytest.fixture(scope="session")
def undisturbed(data, tmp_path_factory) -> ChaosRun:
    """The same run on two nodes, left alone."""
    with ChaosRun("undisturbed", tmp_path_factory.mktemp("undisturbed"), data, **CONFIG) as run:
        run.submit()
        assert run.end() == 0, run.output()
    assert run.groups() == [(2, 0)]
    return run


def curve(run: MlflowRun, name: str) -> dict[int, float]:
    """A curve's values by the clock, each of which has one."""
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, name)
    doubled = [clock for clock, times in Counter(p.step for p in points).items() if times > 1]
    assert not doubled
    return dict(sorted((p.step, p.value) for p in points))


def family(stack: Stack, name: str) -> list[psutil.Process]:
    """A service's or node's process, and all that it started."""
    process = psutil.Process(stack.processes[name].pid)
    return [process, *process.children(recursive=True)]


def actors(stack: Stack, node: str, kind: str) -> list[psutil.Process]:
    """Ray's processes for actors of a class on a node."""
    processes = []
    for process in family(stack, node):
        with contextlib.suppress(psutil.NoSuchProcess):
            if f"ray::{kind}" in " ".join(process.cmdline()):
                processes.append(process)
    return processes


def workers(stack: Stack, node: str) -> list[psutil.Process]:
    """The training's workers on a node."""
    return actors(stack, node, "RayTrainWorker")


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL to all at once, and wait for their end."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, LIMIT_S)


def tell(text: str) -> None:
    """Print a measurement."""
    print(f"chaos: {text}", flush=True)


def spread(cluster: Stack) -> list[int]:
    """Workers by node."""
    return [len(workers(cluster, node)) for node in NODES]


def goes_on(run: ChaosRun, disturbance: str, act: Callable[[], object]) -> None:
    """Disturb it, and wait for a commit by workers that began after that, from the last before it."""
    before, groups = run.clock(), len(run.groups())
    act()
    # that of before + SAVE_EVERY may have been under way
    run.wait_for(lambda: run.clock() > before + SAVE_EVERY, f"{disturbance} to new commits")
    started = run.groups()[groups:]
    assert started
    assert all(clock >= before for _, clock in started)


def assert_near_tensors(run: ChaosRun, undisturbed: ChaosRun) -> None:
    """The last networks, to rounding, in float64: the number of workers was not always the same."""
    tensors, manifest = run.final()
    expected_tensors, expected = undisturbed.final()
    assert manifest.state.clock == IMAGES
    assert manifest.state.attempt == expected.state.attempt == 0
    for network in ("generator", "discriminator", "ema"):
        for name, value in expected_tensors[network].items():
            torch.testing.assert_close(
                tensors[network][name], value, rtol=TOLERANCE, atol=TOLERANCE, msg=f"{network}.{name}"
            )


def same_as_undisturbed(run: ChaosRun, undisturbed: ChaosRun) -> None:
    """The last networks and all curves, to rounding."""
    assert_near_tensors(run, undisturbed)
    parent, nested = run.mlflow_runs()
    assert (parent.info.status, nested) == ("FINISHED", [])
    clocks = list(range(LOOK_EVERY, IMAGES + 1, LOOK_EVERY))
    (wanted, _) = undisturbed.mlflow_runs()
    for name in ("loss_d", "loss_g", "grad_norm_d", "grad_norm_g"):
        points, reference = curve(parent, name), curve(wanted, name)
        assert list(points) == list(reference) == clocks, name
        for clock in clocks:
            assert abs(points[clock] - reference[clock]) <= TOLERANCE * max(1, abs(reference[clock]))
