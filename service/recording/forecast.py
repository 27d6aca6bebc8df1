"""How long a run still takes, from the times that its rehearsal measured."""

import sys
from collections.abc import Sequence

from service.recording.record import SpanTime


class Forecast:
    """Time left: the rehearsal's seconds per cycle in each span, corrected by the speed since then."""

    def __init__(self, spans: Sequence[SpanTime], end: int):
        self.spans = spans
        self.end = end
        self._begun = self._last = (sys.maxsize, 0.0)  # from which any clock is a step back
        self._factor = 1.0

    def seconds(self, start: int, end: int) -> float:
        """Seconds that the rehearsal predicts for the clock from `start` to `end`."""
        total = 0.0
        for number, span in enumerate(self.spans):
            last = max(span.end, end) if number == len(self.spans) - 1 else span.end
            covered = max(0, min(end, last) - max(start, span.start))
            total += covered / span.cycle_images * span.seconds
        return total

    def left_s(self, clock: int, now: float) -> float:
        """Seconds to the end at the time `now`, if `clock` is the newest clock known then.

        The speed is that since the first clock. After a rewind it is measured anew, and stays what it
        was until the clock moves.
        """
        if clock < self._last[0]:
            self._begun = self._last = (clock, now)
        if clock > self._last[0]:
            self._last = (clock, now)
            begun, at = self._begun
            if predicted := self.seconds(begun, clock):
                self._factor = (now - at) / predicted
        left = self.seconds(clock, self.end) * self._factor
        return max(0.0, left - (now - self._last[1]))


def duration(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
