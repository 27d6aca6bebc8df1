"""The alert rules: promtool's unit tests of them, and a section of the runbook for each."""

import re
import subprocess

import pytest
import yaml

from cluster.local import RULES
from tests.conftest import ROOT, need_package

RUNBOOK = "docs/runbook.md"


def alerts() -> dict[str, dict]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


@pytest.mark.parametrize(
    "arguments", [["check", "rules", "rules.yml"], ["test", "rules", "rules.test.yml"]]
)
def test_promtool_finds_every_alert_to_fire_when_it_should_and_only_then(arguments):
    promtool = need_package("/usr/bin/promtool", "prometheus")
    done = subprocess.run([promtool, *arguments], cwd=RULES.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_unit_test_that_makes_it_fire():
    tests = yaml.safe_load(RULES.with_name("rules.test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(alerts())
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == set(alerts())


def test_every_alert_leads_to_its_section_of_the_runbook():
    headings = re.findall(r"^## (.+)$", (ROOT / RUNBOOK).read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    for name, rule in alerts().items():
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert (page, anchor in anchors) == (RUNBOOK, True), (name, anchor)
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert rule["annotations"]["summary"], name
        assert "{{ $labels.instance }}" in rule["annotations"]["description"], name


def test_the_runbook_names_every_alert():
    text = (ROOT / RUNBOOK).read_text()
    assert [name for name in alerts() if f"`{name}`" not in text] == []
