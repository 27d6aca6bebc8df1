"""The group of workers and Ray's nodes: what is free, who lives, and whether the group is to grow."""

import contextlib
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray._private.state import state
from ray.autoscaler.sdk import request_resources

from service import environment
from service.config import Config
from service.driver.sizing import Limits, Size, choose, decide, ended, room
from service.recording.life import Beat, Sign, to_blame
from service.recording.recorder import Leaving, RecorderClient

log = logging.getLogger(__name__)

KNOCK_LIMIT_S = 5.0
KNOCKS_AT_ONCE = 32
RELEASE_LIMIT_S = 10.0
"""A group that ended holds its resources for some seconds more."""
MOST_HANGS = 1
"""A node with more hangs gets no further worker, as long as the others can hold the smallest group."""
LEAST_SILENCE_S, SILENCE_S = 20.0, 60.0
"""A worker gives a sign of life every few seconds, whatever it is doing."""
NODE_LABEL = "ray.io/node-id"
_POLL_S = 0.5
# HTTP/2's preface and empty settings; a server with TLS refuses them, which is an answer too
_GRPC_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_LOOK_S = 2.0


def worker_resources(config: Config) -> dict[str, float]:
    """What Ray reserves for one worker."""
    return {"CPU": float(config.scale.cpus)} | ({"GPU": 1.0} if config.scale.gpu else {})


class Group:
    """The group of workers, seen from the driver: how many there are to be, and whether they live."""

    def __init__(self, config: Config, recorder: RecorderClient):
        scale = config.scale
        self._need = worker_resources(config)
        self._limits = Limits(tuple(config.worker_counts), scale.patience_s, scale.grow_after_s)
        self._recorder = recorder
        self._silence_s = max(LEAST_SILENCE_S, min(scale.hang_s or SILENCE_S, SILENCE_S))
        self._size = Size()
        self._hangs, self._left_out, self._silent = Counter[str](), set[str](), set[str]()

    @property
    def labels(self) -> dict[str, str] | None:
        """The labels that Ray is to look for in a worker's node; None if any will do.

        Without them, Ray sends workers to a silent node until it notices that the node is away.
        """
        avoided = sorted(self._left_out | self._silent)
        return {NODE_LABEL: f"!in({','.join(avoided)})"} if avoided else None

    def choose(self) -> int:
        """The number of workers to fit now; waits a moment for what the last group still holds."""
        counts = self._limits.counts
        answering = _answering()
        self._left_out = self._untrusted(answering)
        trusted = [n["Resources"] for n in answering if n["NodeID"] not in self._left_out]
        most = choose(counts, room(trusted, self._need))
        deadline = time.monotonic() + RELEASE_LIMIT_S
        while choose(counts, self._free(answering)) < most and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if self._free(answering) < counts[0]:
            self._left_out = set()  # the other nodes would hold a group, but others have taken them
        while True:
            answering, self._silent = _knock()
            free = self._free(answering)
            self._size, action = decide(self._limits, self._size, free, time.monotonic())
            if action.workers is not None:
                break
            time.sleep(_LOOK_S)
        workers = action.workers
        if workers > free:
            need = dict(self._need)
            log.warning("event=waiting_for_nodes workers=%d each=%s free_for=%d", workers, need, free)
        return workers

    @contextlib.contextmanager
    def watched(self, token: int) -> Iterator[None]:
        """While the group with this token trains: a worker without signs of life is ended.

        Where more workers fit for a while, the group is let go at its next checkpoint.
        """
        over, silent = threading.Event(), dict[Beat, str]()
        watch = (token, over, silent)
        thread = threading.Thread(target=self._watch, args=watch, name="group", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(KNOCK_LIMIT_S)  # Ray may be away
            signs = [sign for sign in self._recorder.signs() if sign.beat.token == token]
            self._count_hangs({*silent.values()} or {sign.node for sign in to_blame(signs)})

    def ended(self, began: bool) -> None:
        """Take note that the group ended; `began` is False if its nodes were not there in time."""
        self._size = ended(self._limits, self._size, began, time.monotonic())

    def _watch(self, token: int, over: threading.Event, silent: dict[Beat, str]) -> None:
        size, growing = self._size, False
        while not over.wait(_LOOK_S):
            signs = [sign for sign in self._recorder.signs() if sign.beat.token == token]
            try:
                self._end_silent(signs, silent)
                if len(signs) < size.workers:
                    continue  # until all have begun, what is free may be what they are about to take
                size, action = decide(self._limits, size, self._fitting(size.workers), time.monotonic())
            except Exception as error:  # Ray's own, while its head is away
                log.info("event=ray_silent error=%s", error)
                continue
            if action.grow and not growing:
                log.warning("event=growing workers=%d to=%d", size.workers, action.workers)
            if over.is_set():
                return
            if action.grow:  # each time: the recorder may have been started again
                self._recorder.leave(Leaving.AT_COMMIT)
            elif growing:  # another tenant was faster
                self._recorder.stay()
            growing = action.grow

    def _end_silent(self, signs: Iterable[Sign], silent: dict[Beat, str]) -> None:
        """End the workers that have given no sign for too long: stopped, or on a node that is away.

        Their last beats are added to `silent`, with their nodes.
        """
        for sign in signs:
            if sign.age_s > self._silence_s and sign.beat not in silent:
                log.error("event=worker_silent reason=%s", sign.in_words())
                silent[sign.beat] = sign.node
                ray.kill(sign.worker)

    def _count_hangs(self, nodes: Iterable[str]) -> None:
        """Take note of the nodes on which workers of a group stood still."""
        for node in nodes:
            self._hangs[node] += 1
            if self._hangs[node] > MOST_HANGS:
                log.warning("event=node_left_out node=%s hangs=%d", node, self._hangs[node])

    def _untrusted(self, nodes: Iterable[dict[str, Any]]) -> set[str]:
        """Where workers stand still again and again; none if the other nodes do not hold a group."""
        hanging = {node for node, hangs in self._hangs.items() if hangs > MOST_HANGS}
        others = [node["Resources"] for node in nodes if node["NodeID"] not in hanging]
        return hanging if room(others, self._need) >= self._limits.counts[0] else set()

    def _fitting(self, workers: int) -> int:
        """How many fit, so many being there. Nodes are asked to answer only if that is more."""
        counts = self._limits.counts
        if workers == counts[-1] or choose(counts, workers + self._free(_staying())) <= workers:
            return workers
        return workers + self._free(_answering())

    def _free(self, nodes: Iterable[dict[str, Any]]) -> int:
        """How many workers fit into what these nodes have free, but for those that are left out."""
        free = state.available_resources_per_node()
        names = _names(nodes) - self._left_out
        return room([free[name] for name in names & free.keys()], self._need)


@contextlib.contextmanager
def asking_the_autoscaler(config: Config) -> Iterator[None]:
    """Ask Ray's autoscaler, if there is one, for room for the largest number of workers.

    Its requests belong to the cluster, not to a run: that of the run that asked last counts.
    """
    counts = config.worker_counts
    if len(counts) == 1 or environment.ray_address() == "local":
        yield
        return
    request_resources(bundles=[worker_resources(config)] * counts[-1])
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # the cluster may be gone
            request_resources(bundles=[])


def _names(nodes: Iterable[dict[str, Any]]) -> set[str]:
    return {node["NodeID"] for node in nodes}


def _staying() -> list[dict[str, Any]]:
    """The nodes that Ray counts as alive, but for those that are about to go."""
    leaving = state.get_draining_nodes()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]


def _answering() -> list[dict[str, Any]]:
    """The nodes that answer and are to stay. Ray needs up to a minute to notice a killed one."""
    return _knock()[0]


def _knock() -> tuple[list[dict[str, Any]], set[str]]:
    """The nodes that answer and are to stay, and the names of those that do not answer."""
    nodes = _staying()
    with ThreadPoolExecutor(KNOCKS_AT_ONCE) as threads:
        answers = list(threads.map(_answers, nodes))
    for node, answered in zip(nodes, answers, strict=True):
        if not answered:
            log.warning("event=node_silent node=%s", node["NodeID"])
    answering = [node for node, answered in zip(nodes, answers, strict=True) if answered]
    return answering, _names(nodes) - _names(answering)


def _answers(node: dict[str, Any]) -> bool:
    """Whether its raylet says anything; the kernel alone would take a connection for a stopped one."""
    place = (node["NodeManagerAddress"], node["NodeManagerPort"])
    try:
        with socket.create_connection(place, KNOCK_LIMIT_S) as line:
            line.sendall(_GRPC_GREETING)
            line.recv(1)
    except ConnectionResetError:
        return True
    except OSError:
        return False
    return True
