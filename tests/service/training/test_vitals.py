"""What devices and hosts do: read where it can be, silent where it cannot, the worst shown of all."""

import math

import pytest
import torch

from service.training.vitals import WORST, Vitals, worst

CUDA = torch.device("cuda", 0)


def test_a_cpu_has_a_host_and_no_gpu():
    values = Vitals(torch.device("cpu")).read()
    assert 0 <= values["host_cpu_share"] <= 1
    assert 0 < values["host_memory_share"] < 1
    assert all(math.isnan(values[name]) for name in WORST if name.startswith("gpu_"))


def test_a_gpu_is_asked_and_its_peak_begins_anew(monkeypatch):
    answers = {"utilization": 80, "temperature": 61, "power_draw": 350_000, "max_memory_reserved": 30}
    asked = []
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: type("", (), {"total_memory": 40})
    )
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    values = Vitals(CUDA).read()
    assert values["gpu_busy"] == 0.8
    assert values["gpu_temperature_c"] == 61
    assert values["gpu_power_w"] == 350
    assert values["gpu_memory_share"] == 0.75
    assert asked == [CUDA]


def test_a_driver_that_does_not_answer_is_told_once(monkeypatch, caplog):
    def silent(device: torch.device) -> int:
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "utilization", silent)
    vitals = Vitals(CUDA)
    for _ in range(2):
        assert math.isnan(vitals.read()["gpu_busy"])
    assert len([r for r in caplog.records if "event=gpu_not_watched" in r.getMessage()]) == 1


def test_of_all_workers_the_worst_is_shown_and_what_nobody_knows_is_not():
    names = ["gpu_busy", "gpu_temperature_c", "gpu_power_w", "mfu"]
    table = torch.tensor([[0.9, 60, 300, math.nan], [0.4, 70, 200, math.nan], [math.nan] * 4])
    assert worst(names, table) == pytest.approx(
        {"gpu_busy": 0.4, "gpu_busy_rank": 1, "gpu_temperature_c": 70, "gpu_power_w": 500}
    )
