"""The live values at /metrics, and the file that leads a Prometheus to them."""

import math
import shutil
import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.collapse.state import Kind, Level, Verdict
from service.errors import UsageError
from service.recording.prometheus import LiveMetrics, free_port
from service.recording.record import Event, EventAction, Note, Record
from tests.live import announced, scrape, wait_for


def test_live_values_are_served_with_upness_and_the_age_of_the_checkpoint():
    live = LiveMetrics("127.0.0.1", 0, "faces")
    live.update(Record(640, 0.0, values={"loss_d": 1.5, "images": 640.0}))
    assert "gan_checkpoint_images" not in scrape(live.port)
    live.update(Record(320, time.time() - 100, checkpoint={"address": "there"}))
    values = scrape(live.port)
    assert (values["gan_loss_d"], values["gan_images"], values["gan_up"]) == (1.5, 640.0, 1.0)
    assert (values["gan_checkpoint_images"], values["gan_checkpoint_age_seconds"] >= 100) == (320, True)
    live.up(False)
    assert scrape(live.port)["gan_up"] == 0.0


def test_only_word_of_the_clock_is_progress():
    live = LiveMetrics("127.0.0.1", 0, "faces")

    def age() -> float:
        return scrape(live.port)["gan_progress_age_seconds"]

    wait_for(lambda: age() > 0.3)
    live.update(Record(0, 0.0, values={"checkpoint_every_images": 160.0}))
    live.update(Record(160, time.time(), checkpoint={"address": "there"}))
    assert age() > 0.3
    before = age()
    live.update(Record(16, 0.0, values={"images": 16.0}))
    assert age() < before


def test_a_verdict_shows_by_its_kind_and_health_shows_as_0_of_all():
    live = LiveMetrics("127.0.0.1", 0, "faces")

    def severities() -> dict[str, float]:
        return {kind: scrape(live.port)[f'gan_collapse{{kind="{kind}"}}'] for kind in Kind}

    assert severities() == dict.fromkeys(Kind, 0)
    for level, severity in ((Level.WARNING, 1), (Level.COLLAPSED, 2)):
        verdict = Verdict(level, Kind.DIVERGENCE, "words", 16)
        live.update(Record(32, 0.0, note=Note(verdict=verdict)))
        assert severities() == dict.fromkeys(Kind, 0) | {"divergence": severity}
    live.update(Record(48, 0.0, note=Note(stage="hold 8 px", verdict=Verdict())))
    assert severities() == dict.fromkeys(Kind, 0)


def test_rewinds_are_counted_and_no_other_event_is():
    live = LiveMetrics("127.0.0.1", 0, "faces")
    for action in EventAction:
        live.update(Record(16, 0.0, event=Event(action, "words")))
    live.update(Record(32, 0.0, event=Event(EventAction.REWIND, "words")))
    assert scrape(live.port)["gan_rewinds_total"] == 2


def test_the_newest_scores_have_a_gauge_each():
    live = LiveMetrics("127.0.0.1", 0, "faces")
    for clock, value in ((160, 40.0), (320, 30.5)):
        live.update(Record(clock, 0.0, scores={"fid": value, "kid": value / 1000}))
    values = scrape(live.port)
    assert values['gan_score{name="fid"}'] == 30.5
    assert values['gan_score{name="kid"}'] == 0.0305


def test_values_of_single_weights_are_not_for_prometheus():
    live = LiveMetrics("127.0.0.1", 0, "faces")
    live.update(Record(16, 0.0, values={"spectrum/g.dense.weight": 3.0, "loss_d": 1.0}))
    names = [name for name in scrape(live.port) if "weight" in name or "loss" in name]
    assert names == ["gan_loss_d"]


def test_an_address_of_another_machine_is_refused_with_what_to_give():
    with pytest.raises(
        UsageError, match=r"tracking\.prometheus_host: 192\.0\.2\.1 is not an address of this"
    ):
        free_port("192.0.2.1")


def test_a_folder_for_targets_that_cannot_be_written_to_is_no_obstacle(tmp_path, caplog):
    (tmp_path / "file").touch()
    live = LiveMetrics("127.0.0.1", 0, "faces")
    live.announce(str(tmp_path / "file"), "key")
    live.withdraw()
    assert "event=target_not_written" in caplog.text
    assert scrape(live.port)["gan_up"] == 1.0


def test_a_run_on_all_addresses_is_announced_by_the_machines_name(tmp_path):
    live = LiveMetrics("0.0.0.0", 0, "faces")
    live.announce(str(tmp_path), "key")
    assert announced(tmp_path)[0]["targets"] == [f"{socket.gethostname()}:{live.port}"]


def test_a_port_that_is_taken_is_no_obstacle():
    first = LiveMetrics("127.0.0.1", 0, "faces")
    second = LiveMetrics("127.0.0.1", first.port, "faces")
    assert second.port not in (0, first.port)
    assert scrape(second.port)["gan_up"] == 1.0


def test_every_series_names_the_run_and_one_tells_what_runs():
    live = LiveMetrics("127.0.0.1", 0, "faces", {"key": "5f1d", "commit": "abc"})
    live.update(Record(16, 0.0, attempt=2, values={"images": 16.0, "loss_d": 1.0}))
    live.update(Record(16, 0.0, scores={"fid": 3.0}))
    with urllib.request.urlopen(f"http://127.0.0.1:{live.port}/metrics", timeout=10) as answer:
        families = [*text_string_to_metric_families(answer.read().decode())]
    samples = [sample for family in families for sample in family.samples]
    assert {sample.labels.get("run") for sample in samples} == {"faces"}
    (info,) = (sample.labels for sample in samples if sample.name == "gan_run_info")
    assert info == {"run": "faces", "key": "5f1d", "commit": "abc", "attempt": "2"}


def test_a_gauge_that_fails_takes_no_other_with_it():
    live = LiveMetrics("127.0.0.1", 0, "faces")
    live.watch("free_bytes", "Free bytes", lambda: shutil.disk_usage("/nowhere").free)
    values = scrape(live.port)
    assert math.isnan(values["gan_free_bytes"])
    assert values["gan_up"] == 1


def test_groups_that_began_again_are_counted():
    live = LiveMetrics("127.0.0.1", 0, "faces")
    assert scrape(live.port)["gan_restarts_total"] == 0
    for clock in (16, 16, 32):
        live.update(Record(clock, 0.0, event=Event(EventAction.RESTART, "a worker died")))
        live.update(Record(clock, 0.0, checkpoint={"address": "there"}))
    assert scrape(live.port)["gan_restarts_total"] == 3


def test_the_age_of_the_score_is_that_of_the_newest():
    live = LiveMetrics("127.0.0.1", 0, "faces")
    assert scrape(live.port)["gan_score_age_seconds"] < 60
    live.update(Record(320, time.time() - 1000, scores={"fid": 3.0}))
    values = scrape(live.port)
    assert values["gan_score_age_seconds"] >= 1000
    assert values["gan_score_images"] == 320


def test_the_end_waits_for_a_prometheus_that_comes_regularly_and_for_nobody_else():
    live = LiveMetrics("127.0.0.1", 0, "faces")
    live.await_visit(1000.0)  # nobody has ever come
    scrape(live.port)
    live.await_visit(1000.0)  # somebody looked once
    scrape(live.port)
    live.failed(True)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(live.await_visit, 1000.0)
        time.sleep(0.2)
        assert not waiting.done()
        seen = scrape(live.port)
        waiting.result()
    assert seen["gan_failed"] == 1
