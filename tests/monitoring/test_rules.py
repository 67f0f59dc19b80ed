"""The alert rules: tried by promtool, and in step with the exporter, with `watch`, and with the runbook."""

import re
import shutil
import subprocess

import pytest
import yaml
from fixtures.paths import ROOT

from megajukebox.monitoring.alerts import CHECKS
from megajukebox.monitoring.collect.host import Machine
from megajukebox.monitoring.exporters.prometheus import FAMILIES

FOLDER = ROOT / "monitoring"
RULES = [
    rule
    for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES}
ELSEWHERE = {"DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_ROW_REMAP_FAILURE"}  # of NVIDIA's exporter
OF_THE_MACHINE = {"host_memory_available_bytes", "alert_webhook_failures", "exporter_info"}


def run(*command: str) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(
            f"{command[0]} is not installed (apt-get install prometheus prometheus-alertmanager)"
        )
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=FOLDER)
    assert done.returncode == 0, done.stdout + done.stderr


def exported() -> set[str]:
    kinds = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    ours = {name + end for name, (kind, _, _) in FAMILIES.items() for end in kinds[kind]}
    gpu = {f"gpu_{name}" for name in Machine.GPU_FIGURES}
    return {
        f"megajukebox_{name}"
        for name in ours | gpu | OF_THE_MACHINE | {"alert_webhook_failures_total"}
    }


def test_promtool_accepts_the_rules_and_every_test_of_them_passes() -> None:
    run("promtool", "check", "rules", "rules.yml")
    run("promtool", "test", "rules", "rules_test.yml")


def test_the_example_configurations_are_accepted() -> None:
    run("promtool", "check", "config", "prometheus.yml")
    run("amtool", "check-config", "alertmanager.yml")


def test_every_alert_is_tried_in_the_rules_test() -> None:
    tests = yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]
    fired = {
        t["alertname"] for test in tests for t in test["alert_rule_test"] if t.get("exp_alerts")
    }
    assert fired == set(ALERTS)


def test_every_metric_of_a_rule_is_exported() -> None:
    for alert, rule in ALERTS.items():
        named = set(re.findall(r"\b(?:megajukebox|DCGM)_\w+", rule["expr"]))
        assert named <= exported() | ELSEWHERE, alert


def test_what_watch_tells_has_an_alert_of_the_same_name_and_urgency() -> None:
    for alert, (severity, _, _) in CHECKS.items():
        assert ALERTS[alert]["labels"]["severity"] == severity


def test_every_alert_has_a_paragraph_in_the_runbook() -> None:
    book = (FOLDER.parent / "docs" / "RUNBOOK.md").read_text()
    paragraphs = dict(
        re.findall(r"^### (Jukebox\w+)\n(.*?)(?=^##|\Z)", book, re.MULTILINE | re.DOTALL)
    )
    assert set(paragraphs) == set(ALERTS)
    for alert, rule in ALERTS.items():
        assert rule["annotations"]["runbook"] == f"docs/RUNBOOK.md#{alert.lower()}"
        for part in ("**Means.**", "**Confirm.**", "**Do.**"):
            assert part in paragraphs[alert], f"{alert} has no {part}"
