"""The protocol of a run's directory as a model: drivers that die, stall and come back late.

Every call to storage is a step of its own: which driver's is next, and whether the call fails, its
answer is lost or its write arrives later, hypothesis decides. Clocks of hosts differ. Whatever happens,
a checkpoint that a driver knows as committed is found by all that begin later, and verifies.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.engine.plain import PlainState
from service.errors import LockError, ServiceError, StorageError
from service.run import checkpoint
from service.run.checkpoint import Checkpointer, Keep
from service.storage import MissingError, Storage, lock
from service.storage.base import ConflictError, Entry
from service.storage.lock import RunLock

LEASE_S = 3.0
PROCESSES = 4
LIMIT_S = 100
EVERY = 16
# mostly to its end: what is of interest is where the few that stop in the middle stand
STEPS = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, *[100] * 12])


class Fate(Enum):
    """What becomes of a call: it works, fails, works but says it failed, comes later, or is the last."""

    WORKS = "works"
    FAILS = "fails"
    LOST = "lost"
    LATE = "late"
    KILLS = "kills"


FATES = st.sampled_from([*[Fate.WORKS] * 6, Fate.FAILS, Fate.LOST, Fate.LATE])


class Killed(BaseException):
    """The process was killed at this call."""


@dataclass
class World:
    """What all share: the objects, writes that will still arrive, and the time."""

    objects: dict[str, bytes] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    late: list[Callable[[], None]] = field(default_factory=list)
    now: float = 1e6
    count: int = 0

    def put(self, key: str, data: bytes) -> str:
        self.count += 1
        self.objects[key], self.versions[key] = data, self.count
        return str(self.count)

    def put_if(self, key: str, data: bytes, version: str | None) -> str:
        present = str(self.versions[key]) if key in self.objects else None
        if present != version:
            raise ConflictError(f"{key}: changed by another process")
        return self.put(key, data)

    def delete(self, keys: list[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)


class Actor(threading.Thread):
    """A process, run in a thread. It stops before a call to storage and waits for `step`."""

    def __init__(self, host: str, skew: float, work: Callable[[], Any]):
        super().__init__(daemon=True)
        self.host, self.skew = host, skew
        self._work, self._go, self._stopped = work, threading.Semaphore(0), threading.Semaphore(0)
        self._left, self._fate = 0, Fate.WORKS
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_over = False
        self.start()
        self._stopped.acquire()

    def run(self) -> None:
        """Work until it is done, fails or is killed."""
        try:
            self.result = self._work()
        except BaseException as error:
            self.error = error
        self.is_over = True
        self._stopped.release()

    def step(self, fate: Fate, calls: int = 1) -> None:
        """Let it make `calls` calls, then stop it. All of them work but the last, which meets `fate`."""
        self._left, self._fate = calls, fate
        self._go.release()
        assert self._stopped.acquire(timeout=LIMIT_S), "it waits for something else than storage"

    def call(self, act: Callable[[], Any], is_write: bool, world: World) -> Any:
        """Do what its fate says, once it may."""
        if not self._left:
            self._stopped.release()
            self._go.acquire()
        self._left -= 1
        match Fate.WORKS if self._left else self._fate:
            case Fate.KILLS:
                raise Killed
            case Fate.WORKS:
                return act()
            case Fate.LATE if is_write:
                world.late.append(act)
            case Fate.LOST if is_write:
                act()
        raise StorageError("the storage did not answer")


class ModelStorage(Storage):
    """The world's objects; each call of an actor is a step, others go through."""

    address = "model"

    def __init__(self, world: World):
        super().__init__(retry_s=0)
        self.world = world

    def _do(self, act: Callable[[], Any], is_write: bool = False) -> Any:
        actor = threading.current_thread()
        return actor.call(act, is_write, self.world) if isinstance(actor, Actor) else act()

    def get(self, key: str, start: int = 0, length: int | None = None, etag: str = "") -> bytes:
        return self.get_versioned(key)[0]

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        def read() -> tuple[bytes, str]:
            if key not in self.world.objects:
                raise MissingError(key)
            return self.world.objects[key], str(self.world.versions[key])

        return self._do(read)

    def put(self, key: str, data: bytes) -> None:
        self._do(lambda: self.world.put(key, data), is_write=True)

    def put_if(self, key: str, data: bytes, version: str | None) -> str:
        return self._do(lambda: self.world.put_if(key, data, version), is_write=True)

    @contextmanager
    def writer(self, key: str) -> Iterator[Any]:
        pieces: list[bytes] = []
        yield SimpleNamespace(write=lambda data: pieces.append(bytes(data)))
        self.put(key, b"".join(pieces))

    def entries(self, prefix: str = "") -> dict[str, Entry]:
        def walk() -> dict[str, Entry]:
            return {
                k: Entry(len(v)) for k, v in sorted(self.world.objects.items()) if k.startswith(prefix)
            }

        return self._do(walk)

    def delete(self, keys: Any) -> None:
        for key in keys:
            self._do(lambda key=key: self.world.delete([key]), is_write=True)

    def sweep(self, prefix: str) -> None:
        """Nothing is left behind."""


class ManualLock(RunLock):
    """Renewed by a step, not by a thread of its own."""

    def _keep_renewing(self) -> None:
        """Nothing."""


@dataclass
class Driver:
    """A process that holds the lock, or once did, and its group of workers."""

    host: str
    skew: float
    lock: ManualLock | None  # an orphaned group has none
    token: int
    clock: int
    actor: Actor | None = None


class Protocol(RuleBasedStateMachine):
    """Drivers that acquire, resume, commit, renew, and begin new groups, one storage call at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.storage = ModelStorage(self.world)
        self.actors: list[Actor] = []
        self.drivers: list[Driver] = []
        self.known = 0  # the clock of the newest commit that its driver knows of
        self._hosts = 0
        self.free_from = 0.0
        self._patch = pytest.MonkeyPatch()
        actor = threading.current_thread
        clock = SimpleNamespace(
            time=lambda: self.world.now + getattr(actor(), "skew", 0.0),
            monotonic=lambda: self.world.now,
            sleep=self._sleep,
        )
        self._patch.setattr(lock, "time", clock)
        name = SimpleNamespace(gethostname=lambda: getattr(actor(), "host", "observer"))
        self._patch.setattr(lock, "socket", name)

    def _sleep(self, seconds: float) -> None:
        self.world.now += seconds

    def teardown(self) -> None:
        """End all threads."""
        for actor in self.actors:
            if not actor.is_over:
                actor.step(Fate.KILLS)
        self._patch.undo()

    def begin(self, host: str, skew: float, work: Callable[[], Any]) -> Actor:
        actor = Actor(host, skew, work)
        self.actors.append(actor)
        return actor

    @precondition(lambda self: sum(not actor.is_over for actor in self.actors) < PROCESSES)
    @precondition(lambda self: self.world.now >= self.free_from)
    @rule(skew=st.sampled_from([-3600.0, 0.0, 3600.0]))
    def a_driver_starts(self, skew: float) -> None:
        """It takes the lock, if it can, and resumes."""
        self.free_from = self.world.now + LEASE_S  # others would but wait
        self._hosts += 1
        host = f"host-{self._hosts}"
        known: list[int] = []

        def work() -> Driver:
            run_lock = ManualLock(self.storage, LEASE_S)
            token = run_lock.acquire()
            known.append(self.known)
            return Driver(host, skew, run_lock, token, self._resume(known[0]))

        self.begin(host, skew, work)

    def _resume(self, known: int) -> int:
        """What every group does first; all that was known as committed before is there."""
        for name, tensors, manifest in checkpoint.newest(self.storage):
            assert int(tensors["ema"]["clock"]) == manifest.state.clock == name.clock
            assert name.clock >= known
            return name.clock
        assert known == 0
        return 0

    @precondition(lambda self: any(d.actor is None or d.actor.is_over for d in self.drivers))
    @rule(data=st.data(), what=st.sampled_from([*["commit"] * 6, "renew", "new group"]))
    def a_driver_works(self, data: st.DataObject, what: str) -> None:
        """A driver that is idle begins something."""
        idle = [d for d in self.drivers if d.actor is None or d.actor.is_over]
        newest = max(idle, key=lambda driver: driver.token)  # most of the others can do nothing more
        driver = data.draw(st.sampled_from([*[newest] * 4, *idle]))
        what = what if driver.lock else "commit"
        works = {"commit": self._commit, "renew": self._renew, "new group": self._new_group}
        driver.actor = self.begin(driver.host, driver.skew, lambda: works[what](driver))

    def _commit(self, driver: Driver) -> None:
        clock = driver.clock + EVERY
        saver = Checkpointer(self.storage, driver.token, Keep(1), {})
        tensors = {"ema": {"clock": torch.tensor(clock)}}
        saver._commit(tensors, PlainState(seed=0, clock=clock), {}, True)
        driver.clock = clock
        self.known = max(self.known, clock)

    def _renew(self, driver: Driver) -> None:
        assert driver.lock
        driver.lock.renew()

    def _new_group(self, driver: Driver) -> None:
        """The workers died; those that did not are orphans with the token before."""
        assert driver.lock
        orphan = Driver(driver.host, driver.skew, None, driver.token, driver.clock)
        driver.token = driver.lock.advance(self.storage)
        driver.clock = self._resume(self.known)
        self.drivers.append(orphan)

    @precondition(lambda self: any(not actor.is_over for actor in self.actors))
    @rule(data=st.data(), steps=STEPS, fate=FATES)
    def some_calls_are_made(self, data: st.DataObject, steps: int, fate: Fate) -> None:
        """One process goes on for some calls, the last of which has this fate."""
        busy = [a for a in self.actors if not a.is_over]
        actor = data.draw(st.sampled_from([*[busy[-1]] * 3, *busy]))
        actor.step(fate, steps)
        if actor.is_over and isinstance(actor.result, Driver):
            self.drivers.append(actor.result)
            actor.result = None
        error = actor.error
        assert error is None or isinstance(error, ServiceError | Killed), repr(error)

    @precondition(lambda self: any(not actor.is_over for actor in self.actors))
    @rule(data=st.data())
    def a_process_is_killed(self, data: st.DataObject) -> None:
        """In the middle of whatever it does."""
        actor = data.draw(st.sampled_from([a for a in self.actors if not a.is_over]))
        actor.step(Fate.KILLS)
        self.drivers = [driver for driver in self.drivers if driver.actor is not actor]

    @precondition(lambda self: self.world.late)
    @rule()
    def a_late_write_arrives(self) -> None:
        """Conditions are judged when it arrives."""
        write = self.world.late.pop(0)
        with suppress(ConflictError):
            write()

    @rule(seconds=st.sampled_from([1.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        """Leases run out."""
        self.world.now += seconds

    @invariant()
    def what_is_known_as_committed_is_found_and_verifies(self) -> None:
        """By whoever begins now."""
        self._resume(self.known)

    @invariant()
    def at_most_one_token_can_commit(self) -> None:
        """Those that may are the lock's own."""
        holder, _ = lock.read_holder(self.storage)
        able = set()
        for driver in self.drivers:
            try:
                lock.check_token(self.storage, driver.token)
                able.add((driver.host, driver.token))
            except LockError:
                continue
        assert len(able) <= 1
        assert not able or holder is not None


pytestmark = pytest.mark.slow
TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(
    max_examples=100, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
