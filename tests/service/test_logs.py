"""Log lines as JSON: each names who wrote it, and sending one never leads to another."""

import json
import logging
from collections.abc import Iterator

import pytest

from service import logs


@pytest.fixture
def logger(monkeypatch) -> Iterator[logging.Logger]:
    """The service's own logger, as it was afterwards."""
    logger = logging.getLogger(logs.ROOT)
    before = logger.handlers[:], logger.propagate, logger.level
    monkeypatch.setattr(logs, "_about", {})
    yield logger
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def test_a_line_is_an_object_with_time_level_who_event_and_message(logger, capsys):
    sent: list[str] = []
    logs.begin(sent.append, run="faces", role="worker", rank=3)
    logging.getLogger("service.storage.base").warning("event=storage_retry address=%s", "s3://a/b")
    logs.note(attempt=2)
    logging.getLogger("service.run.checkpoint").info("a\nb \u2028 é \udcff")
    first, second = map(json.loads, sent)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "WARNING",
        "run": "faces",
        "role": "worker",
        "rank": 3,
        "event": "storage_retry",
        "message": "event=storage_retry address=s3://a/b",
        "logger": "service.storage.base",
    }
    assert (second["attempt"], second["message"]) == (2, "a\nb \u2028 é \udcff")
    assert "event" not in second
    printed = capsys.readouterr().out.splitlines()
    assert len(sent) == len(printed) == 2


def test_an_error_brings_its_traceback_and_details_are_left_out(logger):
    sent: list[str] = []
    logs.begin(sent.append)
    logger.debug("nobody asked")
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("event=failed")
    (line,) = map(json.loads, sent)
    assert line["traceback"].endswith("ValueError: why")


def test_what_is_logged_while_a_line_is_sent_is_not_sent(logger):
    sent: list[str] = []

    def send(line: str) -> None:
        logger.warning("event=recorder_silent")
        sent.append(line)

    logs.begin(send)
    logger.warning("event=first")
    logger.warning("event=second")
    assert [json.loads(line)["event"] for line in sent] == ["first", "second"]


def test_a_line_that_cannot_be_sent_stops_nobody(logger, capsys):
    def send(line: str) -> None:
        raise RuntimeError("the recorder is gone")

    logs.begin(send)
    logger.warning("event=first")
    assert "event=first" in capsys.readouterr().out


def test_beginning_again_writes_no_line_twice(logger, capsys):
    for _ in range(2):
        logs.begin(lambda line: None)
    logger.warning("event=first")
    assert len(capsys.readouterr().out.splitlines()) == 1
