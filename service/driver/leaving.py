"""A driver that is asked to end lets its workers save first."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from ray.train import get_preemption_info

from service.recording.recorder import Leaving, RecorderClient

SAVE_LIMIT_S = 20.0
"""How long the workers may take; Kubernetes kills a process 30 s after it asked it to end."""


def node_is_leaving() -> bool:
    """Whether a node of this group of workers is about to go; all of them ask together."""
    return get_preemption_info() is not None


@contextlib.contextmanager
def leaving_on_sigterm(recorder: RecorderClient) -> Iterator[threading.Event]:
    """An event that SIGTERM sets: then the workers save and return, and the driver is to end.

    KeyboardInterrupt at once if there is nothing to save yet, at a second SIGTERM, or if the workers
    take longer than SAVE_LIMIT_S.
    """
    asked, over = threading.Event(), threading.Event()

    def take(*_: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    def tell() -> None:
        asked.wait()
        if over.is_set():
            return
        if "stage" in recorder.latest():  # cycles have been trained
            recorder.leave(Leaving.AT_LOOK)
            over.wait(SAVE_LIMIT_S)
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGTERM, take)
    thread = threading.Thread(target=tell, name="leaving", daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        over.set()
        signal.signal(signal.SIGTERM, before)
        if not asked.is_set():
            asked.set()  # so that the thread ends
            thread.join()
