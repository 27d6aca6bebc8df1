"""Keeps a training going: its driver is started again until it is done, or has failed for good."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from service.cli import Exit

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
STEADY_S = 300.0
"""A driver that lived for so long is started again after the first pause."""
_LAST = (Exit.DONE, Exit.USAGE, Exit.LASTING, Exit.INTERRUPTED)


def run_driver(command: Sequence[str], environment: Mapping[str, str], again: bool) -> int:
    """Run a driver's command, and return its exit code.

    It is started `again` if it was killed, or failed in a way that may pass. SIGTERM and Ctrl-C are
    handed on, and its end is waited for.
    """
    pause_s = FIRST_PAUSE_S
    while True:
        start = time.monotonic()
        process = subprocess.Popen(command, env=dict(environment))
        with _handing_on(process) as asked:
            code = process.wait()
        if code in _LAST or asked or not again:
            return code
        if time.monotonic() - start > STEADY_S:
            pause_s = FIRST_PAUSE_S
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        print(f"the driver {how}; again in {pause_s:.0f} s", file=sys.stderr, flush=True)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


@contextlib.contextmanager
def _handing_on(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """While it runs, both signals go to the process; they are listed, too."""
    asked: list[int] = []

    def hand_on(number: int, _: Any) -> None:
        asked.append(number)
        process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
