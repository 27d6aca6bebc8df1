"""What a person who waits is told."""

import io
import time

import pytest

from service.driver import progress
from service.driver.progress import Progress
from service.recording.forecast import Forecast, duration
from service.recording.record import SpanTime

SPANS = (SpanTime(0, 100, 10, 1.0), SpanTime(100, 200, 20, 4.0))  # 10 s, then 20 s


def test_time_left_follows_the_rehearsal_and_is_corrected_by_what_was_seen():
    forecast = Forecast(SPANS, end=200)
    assert forecast.seconds(0, 200) == pytest.approx(30)
    assert forecast.left_s(0, now=1000.0) == pytest.approx(30)
    assert forecast.left_s(50, now=1010.0) == pytest.approx(50)  # half as fast as rehearsed


def test_time_left_runs_down_until_more_is_known_and_starts_anew_with_a_rewind():
    forecast = Forecast(SPANS, end=200)
    forecast.left_s(0, now=1000.0)
    assert forecast.left_s(50, now=1005.0) == pytest.approx(25)
    assert forecast.left_s(50, now=1015.0) == pytest.approx(15)
    assert forecast.left_s(50, now=1090.0) == 0
    assert forecast.left_s(20, now=1100.0) == pytest.approx(28)  # the time of what was lost is no speed
    assert forecast.left_s(40, now=1104.0) == pytest.approx(2 * 26)


def test_beyond_the_table_the_last_span_goes_on():
    assert Forecast(SPANS, end=400).seconds(0, 400) == pytest.approx(10 + 60)


def test_durations_are_written_as_people_do():
    assert [duration(59.6), duration(125), duration(3723)] == ["1:00", "2:05", "1:02:03"]


def lines(values: dict, monkeypatch, **last: float | str) -> str:
    """What is printed of these values, off a terminal, and of the `last` ones at the end."""
    monkeypatch.setattr(progress, "POLL_S", 0.01)
    out = io.StringIO()
    with Progress(lambda: values, 200, out):
        deadline = time.monotonic() + 30
        while "images/s" not in out.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        values |= last
    return out.getvalue()


def test_losses_that_are_nan_and_so_in_no_record_do_not_end_the_telling(monkeypatch):
    values = {"clock": 50, "images_per_s": 10.0, "stage": "hold 8 px"}
    assert "hold 8 px, D nan G nan" in lines(values, monkeypatch)


def test_off_a_terminal_lines_tell_rate_time_left_stage_and_losses(monkeypatch):
    values = {"clock": 50, "images_per_s": 10.0, "stage": "hold 8 px", "loss_d": 1.5,
              "loss_g": 0.25, "forecast": SPANS, "trouble": "server away"}  # fmt: skip
    text = lines(values, monkeypatch)
    assert "about 0:25 on this machine" in text
    assert "records are kept until it is back: server away" in text
    assert " 25% 50 images, 10 images/s, left 0:25, hold 8 px, D 1.50 G 0.25" in text


def test_the_last_line_tells_where_it_ended(monkeypatch):
    values = {"clock": 50, "images_per_s": 10.0, "stage": "hold 8 px"}
    text = lines(values, monkeypatch, clock=200)
    assert text.splitlines()[-1].startswith("100% 200 images, ")


def test_whom_the_others_wait_for_stands_in_the_place_of_the_last_rate(monkeypatch):
    values = {"clock": 50, "images_per_s": 10.0, "stage": "hold 8 px"}
    still = "worker 1 (process 7 on b): waiting for data for 40 s"
    text = lines(values, monkeypatch, clock=100, still=still)
    assert f" 50% 100 images, standing still: {still}, hold 8 px" in text.splitlines()[-1]
