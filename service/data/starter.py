"""Processes forked from one that has imported what they need, and has one thread: the starter.

Starting sixteen takes no longer than starting one, and those of the next attempt begin at once. The
starter begins with the first of them, and ends with the process that uses it, with all that it started.
"""

import atexit
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import psutil

from service.glibc import KEEP_FREED_MEMORY

log = logging.getLogger(__name__)

FIRST_ANSWER_S, ANSWER_S = 600.0, 60.0
"""A starter answers within seconds, once it has imported what it needs; else it has been stopped."""
ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
"""A process is forked safely only while it has no other threads, such as numpy's and pyarrow's."""
FILES_AT_ONCE = 200
"""The kernel passes at most 253 files with a message."""


# The side that uses it ----------------------------------------------------------------------------


class Starter:
    """The process that others are forked from, seen from the one that uses it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | KEEP_FREED_MEMORY | ONE_THREAD | {"PYTHONPATH": _module_path()},
            )
        self._socket, self._control = ours, Connection(os.dup(ours.fileno()))
        self._asking, self._has_answered = threading.Lock(), False
        self.user = os.getpid()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def lives(self) -> bool:
        """Whether it can start processes."""
        return not self._control.closed and self._process.poll() is None

    def start(self, name: str, serve: Callable[..., None], files: Sequence[int]) -> int | None:
        """The pid of a new process that calls `serve(*files)`; None if the starter has ended.

        Besides the standard streams it has copies of these files and no others; it has this process's
        environment and its folder. `name` is what `ps` shows.
        """
        place = dict(os.environ), os.getcwd()
        return self._ask(("start", name, serve, len(files), place), files)

    def exit_code(self, pid: int | None) -> int | None:
        """The exit code of a process that ends; the starter's own if that has ended."""
        code = None if pid is None else self._ask(("wait", pid))
        return self._process.poll() if code is None else code

    def end(self, pid: int | None) -> None:
        """End a process, whatever it does."""
        if pid is not None:
            self._ask(("end", pid))

    def close(self, limit_s: float = ANSWER_S) -> None:
        """End the starter and all that it started, by force if that takes longer than the limit."""
        self._control.close()
        self._socket.close()
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(psutil.Error):  # they may end meanwhile
                for child in psutil.Process(self._process.pid).children():
                    child.kill()
            self._process.kill()
            self._process.wait()

    def _ask(self, request: Any, files: Sequence[int] = ()) -> int | None:
        """Its answer; None if it has ended, or gives none within the limit, which ends it."""
        with self._asking:
            if not self.lives:
                return None
            try:
                return self._exchange(request, files)
            except (EOFError, OSError) as error:
                log.warning("event=starter_ended pid=%d error=%r", self.pid, error)
                self.close(limit_s=0 if isinstance(error, TimeoutError) else ANSWER_S)
                return None
            except BaseException:  # the answer is still to come, and belongs to no later request
                self.close(limit_s=0)
                raise

    def _exchange(self, request: Any, files: Sequence[int]) -> int:
        self._control.send(request)
        for first in range(0, len(files), FILES_AT_ONCE):
            socket.send_fds(self._socket, [b" "], files[first : first + FILES_AT_ONCE])
        limit_s = ANSWER_S if self._has_answered else FIRST_ANSWER_S
        if not self._control.poll(limit_s):
            raise TimeoutError(f"no answer for {limit_s:.0f} s")
        answer: int = self._control.recv()
        self._has_answered = True
        return answer


_starter: Starter | None = None
_starting = threading.Lock()


def starter() -> Starter:
    """This process's starter, which begins with the first call."""
    global _starter
    with _starting:
        if _starter is None or _starter.user != os.getpid() or not _starter.lives:
            _close()
            _starter = Starter()
        return _starter


@atexit.register
def _close() -> None:
    if _starter:
        _starter.close()


def _module_path() -> str:
    return os.pathsep.join(filter(None, sys.path))


# The starter's side -------------------------------------------------------------------------------


class _Children:
    """The processes that were started, and the exit codes of those that ended."""

    def __init__(self, user: socket.socket):
        self._user, self._requests = user, Connection(os.dup(user.fileno()))
        self._answers: dict[str, Callable[..., int]] = {
            "start": self._start,
            "wait": self._wait,
            "end": self._end,
        }
        self._running: set[int] = set()
        self._codes: dict[int, int] = {}

    def take_requests(self) -> None:
        """Do what the user asks for, until it ends; then end all."""
        try:
            while True:
                wish, *given = self._requests.recv()
                self._requests.send(self._answers[wish](*given))
        except (EOFError, ConnectionError):
            pass
        finally:
            for pid in [*self._running]:
                self._end(pid)

    def _start(
        self,
        name: str,
        serve: Callable[..., None],
        count: int,
        place: tuple[dict[str, str], str],
    ) -> int:
        files: list[int] = []
        while len(files) < count:
            byte, some, flags, _ = socket.recv_fds(self._user, 1, FILES_AT_ONCE)
            files += some
            if not byte:
                raise EOFError
            if flags & socket.MSG_CTRUNC:
                raise OSError(f"the limit of open files does not hold {count} more")
        child = os.fork()
        if not child:
            self._user.close()
            self._requests.close()
            _run(name, serve, files, *place)
        for file in files:
            os.close(file)
        self._running.add(child)
        self._codes.pop(child, None)
        return child

    def _wait(self, pid: int) -> int:
        if pid in self._running:
            self._codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            self._running.remove(pid)
        return self._codes[pid]

    def _end(self, pid: int) -> int:
        if pid in self._running:
            os.kill(pid, signal.SIGKILL)
        return self._wait(pid)


def _run(
    name: str,
    serve: Callable[..., None],
    files: Sequence[int],
    environment: dict[str, str],
    folder: str,
) -> NoReturn:
    """What a forked process does; it never comes back into the code that forked it."""
    code = 1
    try:
        with contextlib.suppress(OSError):
            Path("/proc/self/comm").write_text(name)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        serve(*files)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stderr.flush()
        finally:
            os._exit(code)


def main(arguments: Sequence[str]) -> None:
    """Start, await and end processes, as the user asks; with its end, end all of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the user decides when they end
    _Children(socket.socket(fileno=int(arguments[0]))).take_requests()


if __name__ == "__main__":
    main(sys.argv[1:])
