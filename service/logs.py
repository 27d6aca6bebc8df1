"""Log lines as JSON, an object a line that names who wrote it: for whatever keeps and searches logs."""

import json
import logging
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from service.text import printable, redact

ROOT = "service"
LEVEL = logging.INFO

_about: dict[str, str | int] = {}


class JsonLines(logging.Formatter):
    """The time, level, event and message of a line, with what `begin` and `note` know of its process."""

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object, without a line break."""
        message = redact(record.getMessage())
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, str | int] = {"time": time, "level": record.levelname, **_about}
        if message.startswith("event="):
            line["event"] = message.removeprefix("event=").partition(" ")[0]
        line |= {"message": message, "logger": record.name}
        if record.exc_info:
            line["traceback"] = redact(self.formatException(record.exc_info))
        return json.dumps(line)


class PlainLines(logging.Formatter):
    """Lines for a terminal, without the secrets of addresses."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, with a traceback if it has one."""
        message = {"msg": printable(record.getMessage()), "args": ()}
        return redact(super().format(logging.makeLogRecord(vars(record) | message)))


class Forward(logging.Handler):
    """Hands each line to `send`; what is logged while it does so is not handed on."""

    def __init__(self, send: Callable[[str], None]):
        super().__init__(LEVEL)
        self.setFormatter(JsonLines())
        self._send, self._busy = send, threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a line on."""
        if getattr(self._busy, "now", False):
            return
        self._busy.now = True
        try:
            self._send(self.format(record))
        except Exception:
            self.handleError(record)
        finally:
            self._busy.now = False


def begin(send: Callable[[str], None], **about: str | int) -> None:
    """From now on this process logs JSON lines to stdout and to `send`; each tells `about` the process.

    A process calls it once, before it does anything else.
    """
    note(**about)
    to_stdout = logging.StreamHandler(sys.stdout)
    to_stdout.setFormatter(JsonLines())
    logger = logging.getLogger(ROOT)
    logger.setLevel(LEVEL)
    logger.propagate = False  # Ray has handlers of its own, which would write each line again
    logger.handlers[:] = [to_stdout, Forward(send)]


def note(**about: str | int) -> None:
    """From now on, lines of this process tell this, too."""
    _about.update(about)
