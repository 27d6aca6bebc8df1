"""Processes forked from one that has imported what they need, and has one thread: the starter.

Starting sixteen takes no longer than starting one, and those of the next attempt begin at once. The
starter begins with the first of them, and ends with the process that uses it, with all that it started.
"""

import atexit
import contextlib
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

from service.glibc import KEEP_FREED_MEMORY

ANSWER_S = 60.0
"""A starter that imported all it needs, and is asked for an end, answers sooner or has been stopped."""
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
        self._one_asks = threading.Lock()
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

        It has copies of these files and no others, this process's environment and its folder; `name` is
        what `ps` shows.
        """
        place = dict(os.environ), os.getcwd()
        # first it imports, which may take long from a disk that is away or busy
        return self._ask(("start", name, serve, len(files), place), files, limit_s=None)

    def exit_code(self, pid: int | None) -> int | None:
        """The exit code of a process that ends; the starter's own if that has ended."""
        code = None if pid is None else self._ask(("wait", pid))
        return self._process.poll() if code is None else code

    def end(self, pid: int | None) -> None:
        """End a process, whatever it does."""
        if pid is not None:
            self._ask(("end", pid))

    def close(self) -> None:
        """End the starter and all that it started."""
        self._control.close()
        self._socket.close()
        try:
            self._process.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(
        self, request: Any, files: Sequence[int] = (), limit_s: float | None = ANSWER_S
    ) -> int | None:
        """Its answer; None if it has ended, or gives none within the limit, which ends it."""
        with self._one_asks:
            if not self.lives:
                return None
            with contextlib.suppress(EOFError, OSError):
                self._control.send(request)
                for first in range(0, len(files), FILES_AT_ONCE):
                    socket.send_fds(self._socket, [b" "], files[first : first + FILES_AT_ONCE])
                if self._control.poll(limit_s):
                    answer: int = self._control.recv()
                    return answer
            self.close()
            return None


_starter: Starter | None = None
_starting = threading.Lock()


def starter() -> Starter:
    """This process's starter, which begins with the first call."""
    global _starter
    with _starting:
        if _starter is None or _starter.user != os.getpid() or not _starter.lives:
            _starter = Starter()
            atexit.register(_starter.close)
        return _starter


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

    def serve(self) -> None:
        """Do what the user asks for, until it ends; then end all."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                wish, *given = self._requests.recv()
                self._requests.send(self._answers[wish](*given))
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
            files += socket.recv_fds(self._user, 1, FILES_AT_ONCE)[1]
        child = os.fork()
        if not child:
            self._user.close()
            self._requests.close()
            _serve(name, serve, files, *place)
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


def _serve(
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
        sys.stderr.flush()
        os._exit(code)


def main(arguments: Sequence[str]) -> None:
    """Start, await and end processes, as the user asks; with its end, end all of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the user decides when they end
    _Children(socket.socket(fileno=int(arguments[0]))).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
