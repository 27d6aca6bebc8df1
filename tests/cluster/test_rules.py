"""The alert rules: promtool's unit tests of them, and a section of the runbook for each."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster.local import RULES
from tests.conftest import ROOT, need_package

RUNBOOK = "docs/runbook.md"
TESTS = Path(__file__).with_name("rules.test.yml")


POD = {
    "job": "train/faces-gan-training",
    "namespace": "train",
    "pod": "faces-gan-training-head-x7k2p",
    "container": "ray-head",
    "endpoint": "run-metrics",
    "instance": "10.0.0.7:9400",
    "ray_io_cluster": "faces-gan-training",
}
"""A PodMonitor's labels."""


def alerts() -> dict[str, dict]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def promtool(*arguments: str, folder: Path = TESTS.parent) -> None:
    command = [need_package("/usr/bin/promtool", "prometheus"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["check", "rules", str(RULES)], ["test", "rules", TESTS.name]])
def test_promtool_finds_every_alert_to_fire_when_it_should_and_only_then(arguments):
    promtool(*arguments)


def series(name: str, **labels: str) -> str:
    pairs = ", ".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{pairs}}}"


def on_pods(tests: dict) -> dict:
    """The same tests with the labels that a PodMonitor gives; `up` names no run there."""
    moved = json.loads(json.dumps(tests).replace("node:94", "10.0.0.7:94"))
    pod = {name: value for name, value in POD.items() if name != "instance"}
    labels = series("", **pod).strip("{}")
    kept = [t for t in moved["tests"] if "file" not in t["name"] and "Kubernetes" not in t["name"]]
    for test in kept:
        for given in test["input_series"]:
            given["series"] = given["series"].replace('job="gan"', labels)
            if given["series"].startswith("up{"):
                given["series"] = re.sub(r', run="\w+"', "", given["series"])
        for case in test["alert_rule_test"]:
            for alert in case["exp_alerts"]:
                alert["exp_labels"] = pod | alert["exp_labels"] | {"job": POD["job"]}
    return moved | {"tests": kept}


IDLE = {
    "name": "a Ray cluster on which nothing trains, and one on which a run has ended in order",
    "interval": "1m",
    "input_series": [
        {"series": series("up", **POD), "values": "0x600"},
        *(
            {"series": series(name, **POD | {"pod": "before", "run": "cats"}), "values": values}
            for name, values in (
                ("gan_up", "1x10 0 stale"),
                ("gan_failed", "0x11 stale"),
                ("gan_start_time_seconds", "0x11 stale"),
            )
        ),
    ],
    "alert_rule_test": [
        {"eval_time": time, "alertname": "GanRunGone", "exp_alerts": []} for time in ("20m", "500m")
    ],
}


@pytest.mark.slow
def test_on_pods_the_same_alerts_fire_and_an_idle_cluster_pages_nobody(tmp_path: Path):
    tests = on_pods(yaml.safe_load(TESTS.read_text()))
    tests["tests"].append(IDLE)
    tests["rule_files"] = [str(RULES)]
    (tmp_path / "pods.test.yml").write_text(yaml.safe_dump(tests))
    promtool("test", "rules", "pods.test.yml", folder=tmp_path)


def test_every_alert_has_a_unit_test_that_makes_it_fire():
    tests = yaml.safe_load(TESTS.read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(alerts())
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == set(alerts())


def test_every_alert_leads_to_its_section_of_the_runbook():
    headings = re.findall(r"^## (.+)$", (ROOT / RUNBOOK).read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    for name, rule in alerts().items():
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert (page, anchor in anchors) == (RUNBOOK, True), (name, anchor)
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert rule["annotations"]["summary"], name
        assert "{{ $labels.instance }}" in rule["annotations"]["description"], name


def test_the_runbook_names_every_alert():
    text = (ROOT / RUNBOOK).read_text()
    assert [name for name in alerts() if f"`{name}`" not in text] == []
