"""Shows how far a run is: as a bar on a terminal, elsewhere as a line every 15 s."""

import math
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm

from service.recording.forecast import Forecast, duration

POLL_S = 1.0
LINE_EVERY_S = 15.0


class Progress:
    """Shows what `latest` returns until it is closed; use as a context manager."""

    def __init__(self, latest: Callable[[], dict[str, Any]], end: int, out: TextIO = sys.stderr):
        self._latest, self._end, self._out = latest, end, out
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)
        self._forecast: Forecast | None = None
        self._trouble = ""

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _show(self) -> None:
        terminal = self._out.isatty()
        bar = tqdm(
            total=self._end,
            disable=not terminal,
            file=self._out,
            bar_format="{percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} images{postfix}",
        )
        shown, at = 0, 0.0
        with bar:
            stopped = False
            while not stopped:
                stopped = self._stop.wait(POLL_S)
                values = self._latest()
                self._announce(values)
                if "stage" not in values:
                    continue
                text, clock = self._describe(values), int(values["clock"])
                bar.n = min(clock, self._end)
                bar.set_postfix_str(text)
                due = time.monotonic() > at + LINE_EVERY_S or (stopped and clock > shown)
                if not terminal and due:
                    shown, at = clock, time.monotonic()
                    share = min(100.0, 100 * clock / self._end)
                    print(f"{share:3.0f}% {clock} images, {text}", file=self._out, flush=True)

    def _announce(self, values: dict[str, Any]) -> None:
        """Print the expected duration once the rehearsal knows it, and each new trouble."""
        if "forecast" in values and self._forecast is None:
            self._forecast = Forecast(values["forecast"], self._end)
            left = self._forecast.seconds(values["clock"], self._end)
            self._say(f"rehearsal passed; the training takes about {duration(left)} on this machine")
        trouble = values.get("trouble", "")
        if trouble and trouble != self._trouble:
            self._say(f"MLflow is unavailable, records are kept until it is back: {trouble}")
        self._trouble = trouble

    def _say(self, text: str) -> None:
        tqdm.write(text, file=self._out)
        self._out.flush()

    def _describe(self, values: dict[str, Any]) -> str:
        if still := values.get("still"):
            return f"standing still: {still}, {values['stage']}"
        left = self._forecast.left_s(values["clock"], time.monotonic()) if self._forecast else 0.0
        return (
            f"{values['images_per_s']:.0f} images/s, left {duration(left)}, {values['stage']},"
            f" D {values.get('loss_d', math.nan):.2f} G {values.get('loss_g', math.nan):.2f}"
        )
