"""The link between two nodes goes down and comes back: the run goes on with the node it can reach."""

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service.environment import RAY_ALONE
from service.run import commits
from tests.chaos.conftest import (
    CONFIG,
    IMAGES,
    SAVE_EVERY,
    ChaosRun,
    assert_near_tensors,
    goes_on,
    kill,
)
from tests.live import wait_for

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may make network namespaces"),
]

ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 6390
DEVICE = "gan0"
HANG_S = 15.0


class Link:
    """Two network namespaces joined by a cable, each with a node of Ray of one CPU; the head is here."""

    def __init__(self) -> None:
        self.names = [f"gan-{os.getpid()}-{side}" for side in "ab"]
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ADDRESS": f"{ADDRESSES[0]}:{PORT}",
            "GLOO_SOCKET_IFNAME": DEVICE,
            "MLFLOW_TRACKING_URI": "",  # in the run's directory, which both namespaces see
            **dict.fromkeys(RAY_ALONE, "1"),  # whatever cluster other tests have here
        }
        self._nodes: list[subprocess.Popen[bytes]] = []

    def up(self) -> None:
        """Make the namespaces and the cable, and start the nodes."""
        for name in self.names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        here, there = self.names
        ip("link", "add", DEVICE, "netns", here, "type", "veth", "peer", "name", DEVICE, "netns", there)
        for name, address in zip(self.names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", DEVICE)
            self.set(name, "up")
        self._start(here, "--head", f"--port={PORT}", "--include-dashboard=false")
        self._start(there, f"--address={self.environment['RAY_ADDRESS']}")

    def set(self, name: str, state: str) -> None:
        """One end of the cable is "up" or "down"."""
        ip("-n", name, "link", "set", DEVICE, state)

    def inside(self, name: str) -> list[str]:
        """What makes a command run in a namespace."""
        return ["ip", "netns", "exec", name]

    def down(self) -> None:
        """End the nodes and all that they started, and take the namespaces away."""
        family = []
        for node in self._nodes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(node.pid)
                family += [process, *process.children(recursive=True)]
        kill(family)
        for name in self.names:
            ip("netns", "delete", name)

    def _start(self, name: str, *options: str) -> None:
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
        place = f"--node-ip-address={ADDRESSES[self.names.index(name)]}"
        folder = tempfile.mkdtemp(prefix="gan-ray-")  # sockets lie below it, and their paths are short
        command = [*self.inside(name), *ray, place, f"--temp-dir={folder}", *options]
        environment = os.environ | self.environment
        with open(f"{folder}/log", "w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self._nodes.append(process)
        wait_for(lambda: "Ray runtime started" in Path(f"{folder}/log").read_text())


def ip(*arguments: str) -> None:
    """The command of that name."""
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def link() -> Iterator[Link]:
    link = Link()
    try:
        link.up()
        yield link
    finally:
        link.down()


def make_run(name: str, folder: Path, data: Path, link: Link) -> ChaosRun:
    scale = CONFIG["scale"] | {"hang_s": HANG_S}
    return ChaosRun(
        name,
        folder,
        str(data),
        address=str(folder / name),
        inside=link.inside(link.names[0]),
        environment=link.environment,
        **(CONFIG | {"scale": scale}),
    )


def test_a_run_outlives_its_link_to_another_node(link, digits, tmp_path):
    with make_run("quiet", tmp_path, digits, link) as quiet:
        quiet.submit()
        assert quiet.end() == 0, quiet.output()
    assert quiet.groups() == [(2, 0)]
    with make_run("cut", tmp_path, digits, link) as run:
        run.submit()
        run.wait_for(lambda: run.clock() >= SAVE_EVERY, "start to the first commit")
        goes_on(run, "a link that went down", lambda: link.set(link.names[0], "down"))
        assert run.groups()[-1][0] == 1
        link.set(link.names[0], "up")
        assert run.end() == 0, run.output()
    assert [workers for workers, _ in run.groups()][:3] == [2, 1, 2]
    assert commits.newest_clock(run.storage) == IMAGES
    assert_near_tensors(run, quiet)
