"""What tests share: packed digits, a small configuration, and one stack of real servers a session."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from threadpoolctl import threadpool_limits
from xdist.scheduler import LoadFileScheduling

from cluster import local
from cluster.local import Stack
from service import pack
from service.config import Config
from service.config.command_line import ConfigOptions, parse_config
from service.config.yaml import load_preset
from service.storage.lock import RunLock

ROOT = Path(__file__).parent.parent

# One thread, here and in every process that a test starts: they share the machine, and threads that wait
# for each other on a busy one take many times as long. Rounding does not depend on it, either.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
threadpool_limits(1)  # numpy's, which is there already
# A deadline would time an example against a number of seconds, which a busy machine exceeds.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
# A call that reaches Ray by mistake fails; Ray would start a cluster of its own in the test's process.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
# Ray Train looks for the end of its workers this often; shorter tests.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
# Nobody reclaims a node here; a watcher for it would be one more process for each group of workers.
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"


WITH_STACK = {
    f"tests/{name}"
    for name in (
        "service/test_sweep.py",
        "service/test_train.py",
        "service/test_job.py",
        "service/recording/test_recorder.py",
        "cluster/test_local.py",
        "cluster/test_submit.py",
        "test_examples.py",
    )
}


class _ByFile(LoadFileScheduling):
    """A file's tests share a process, and those that need the whole stack: one of them starts it."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "stack" if file in WITH_STACK else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """How `--dist loadfile` deals tests to processes."""
    return _ByFile(config, log)


def pytest_collection_finish() -> None:
    """Let the collector of garbage leave alone what was imported and collected, and come less often.

    Looking through millions of objects that stay takes an eighth of the tests' time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the stack; run files that take long first, so that all processes end together."""
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        if "servers" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.stack)
        files.setdefault(item.nodeid.partition("::")[0], []).append(item)

    def is_short(file: str) -> tuple[bool, bool]:
        marks = [{mark.name for mark in item.iter_markers()} for item in files[file]]
        return not all("slow" in each for each in marks), not any("stack" in each for each in marks)

    items[:] = [item for file in sorted(files, key=is_short) for item in files[file]]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits at 32 px, packed into shards of 500."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    pack.main(["digits", str(folder), "--channels", "gray", "--shard-samples", "500"])
    return folder


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The real servers for all tests of this process, of which none has started yet."""
    servers = Stack.load(tmp_path_factory.mktemp("stack"))
    try:
        yield servers
    finally:
        servers.down()


@pytest.fixture(scope="session")
def seaweed(servers: Stack) -> Stack:
    """The servers, of which SeaweedFS runs."""
    servers.up(["s3"])
    return servers


@pytest.fixture(scope="session")
def stack(servers: Stack) -> Stack:
    """SeaweedFS, MLflow's server, Prometheus and a Ray head; name a file that uses it in WITH_STACK."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "SCRAPE", "500ms")  # runs of tests last but some seconds
        servers.up()
    return servers


@pytest.fixture(autouse=True)
def released(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A lock that a test took and did not release would renew, and log, in the tests that follow."""
    taken, acquire = [], RunLock.acquire

    def noted(lock: RunLock, patience_s: float = 0) -> int:
        taken.append(lock)
        return acquire(lock, patience_s)

    monkeypatch.setattr(RunLock, "acquire", noted)
    yield
    for lock in taken:
        lock.release()


PLACES = ["folder", pytest.param("s3", marks=pytest.mark.stack)]
"""Where objects lie. A test of both asks for the fixture `s3` by name, so its case is marked here."""


@pytest.fixture
def s3(seaweed: Stack, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the servers' bucket; their keys and addresses are in the environment."""
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    return "s3://gan"


def need_package(path: str, package: str) -> Path:
    """The path, if Debian's package is installed; else the test skips, and under CI it fails."""
    if not Path(path).exists():
        remedy = f"{path} is missing: apt-get install --no-install-recommends {package}"
        if os.environ.get("CI") == "true":
            pytest.fail(remedy)
        pytest.skip(remedy)
    return Path(path)


SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "RAY_AUTH_TOKEN")


def assert_no_secrets(stack: Stack, seen: dict[str, str]) -> None:
    """None of the stack's keys stands in these texts, by name of the place, or in the servers' logs."""
    logs = [*stack.folder.glob("*.log")]
    for folder in stack.temporary:
        logs += [p for p in Path(folder).rglob("*") if p.suffix in (".log", ".out", ".err")]
    assert len(logs) > 10
    seen = seen | {str(log): log.read_text(errors="replace") for log in logs if log.is_file()}
    lines = [(place, line) for place, text in seen.items() for line in text.splitlines()]
    for name in SECRETS:
        found = [f"{place}: {line}" for place, line in lines if stack.environment[name] in line]
        assert not found, f"{name} appears:\n" + "\n".join(found)


TINY_PHASES = [
    {"resolution": 8, "hold_images": 96, "batch": 16},
    {"resolution": 16, "fade_images": 128, "hold_images": 32, "batch": 16},
    {"resolution": 32, "fade_images": 64, "hold_images": 160, "batch": 16},
]


def tiny_values(data: Path | str, run: Path | str, /, **sections: dict[str, Any]) -> dict[str, Any]:
    """The digits preset made so small that a cycle takes milliseconds; `sections` override."""
    values = load_preset("digits")
    values["model"] |= {"resolution": 32, "width": 4, "latents": 16, "embedding": 8, "attention": 16}
    values["phases"] = TINY_PHASES
    values["training"] |= {"precision": "fp32", "ema_half_life_images": 500}
    values["data"] |= {"url": str(data), "lanes": 8, "window": 16}
    values["run"] |= {"dir": str(run)}
    values["scale"] = {"workers": 1}
    values["checkpoint"] = {"every_images": 160}
    values["evaluation"] = {}
    values["tracking"] |= {"every_images": 16, "pictures_every_images": 240, "panel_rows": 2}
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return values


def tiny_config(data: Path | str, run: Path | str, /, **sections: dict[str, Any]) -> Config:
    """`tiny_values` as a configuration."""
    return Config(**tiny_values(data, run, **sections))


def digits_config(*flags: str) -> Config:
    """The digits preset with these flags over it, as a command reads it."""
    arguments = ["--preset", "digits", *flags]
    return parse_config(ConfigOptions, arguments, "service.train", "Train.")[1]


def start_command(module: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`python -m module arguments` as a process of its own, its output in one pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_command(module: str, *arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and output of `python -m module arguments`."""
    process = start_command(module, *arguments, **environment)
    output, _ = process.communicate(timeout=400)
    return process.returncode, output


def assert_equal(actual: Any, expected: Any, what: str = "") -> None:
    """Nested structures whose tensors and plain values are the same to the bit."""
    assert type(actual) is type(expected), what
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected), what
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), what
        for key in expected:
            assert_equal(actual[key], expected[key], f"{what}.{key}")
    elif isinstance(expected, list):
        for i, (mine, theirs) in enumerate(zip(actual, expected, strict=True)):
            assert_equal(mine, theirs, f"{what}[{i}]")
    else:
        assert actual == expected, what
