"""Keeps a training going: its driver is started again until it is done, or has failed for good."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from service.cli import Exit

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
STEADY_S = 300.0
"""A driver that lived for so long is started again after the first pause."""
_POLL_S = 0.2
_ASKING = (signal.SIGTERM, signal.SIGINT)
_LAST = (Exit.DONE, Exit.USAGE, Exit.LASTING, Exit.INTERRUPTED)


def run_driver(command: Sequence[str], environment: Mapping[str, str], again: bool) -> int:
    """Run a driver's command, and return its exit code.

    It is started `again` if it was killed, or failed in a way that may pass. SIGTERM and Ctrl-C are
    handed on, and its end is waited for.
    """
    pause_s = FIRST_PAUSE_S
    while True:
        start = time.monotonic()
        code, asked = _run(command, environment)
        if code in _LAST or asked or not again:
            return code if code >= 0 else 128 - code  # as a shell says it
        if time.monotonic() - start > STEADY_S:
            pause_s = FIRST_PAUSE_S
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        print(f"the driver {how}; again in {pause_s:.0f} s", file=sys.stderr, flush=True)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, bool]:
    """The exit code of one driver, and whether it was asked to end."""
    asked = threading.Event()
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in _ASKING}
    try:
        # in a session of its own, so that Ctrl-C reaches it once, through us
        process = subprocess.Popen(command, env=dict(environment), start_new_session=True)
        while process.poll() is None:
            if asked.wait(_POLL_S):
                process.send_signal(signal.SIGTERM)
                process.wait()
        return process.returncode, asked.is_set()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
