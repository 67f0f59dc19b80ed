"""The alert rules: tried by promtool, and in step with the exporter, with `watch`, and with the runbook."""

import re
import shutil
import subprocess

import pytest
import yaml
from fixtures.paths import ROOT

from megajukebox.monitoring import generate
from megajukebox.monitoring.alerts import ALERTS as TABLE
from megajukebox.monitoring.exporters.prometheus import exported_names

FOLDER = ROOT / "monitoring"
RULES = [
    rule
    for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES}
ELSEWHERE = {"DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_ROW_REMAP_FAILURE"}  # of NVIDIA's exporter


def run(*command: str) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(
            f"{command[0]} is not installed (apt-get install prometheus prometheus-alertmanager)"
        )
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=FOLDER)
    assert done.returncode == 0, done.stdout + done.stderr


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
        assert named <= set(exported_names()) | ELSEWHERE, alert


def test_generated_files_are_as_the_tables_say() -> None:
    """Stale? Run `make monitoring`."""
    for path, content in generate.generated_files(ROOT).items():
        assert path.read_text() == content, path


def test_every_alert_has_a_paragraph_in_the_runbook() -> None:
    book = (FOLDER.parent / "docs" / "RUNBOOK.md").read_text()
    paragraphs = dict(
        re.findall(r"^### (Jukebox\w+)\n(.*?)(?=^##|\Z)", book, re.MULTILINE | re.DOTALL)
    )
    assert set(paragraphs) == set(ALERTS) == {row.name for row in TABLE}
    for alert, rule in ALERTS.items():
        assert rule["annotations"]["runbook"] == f"docs/RUNBOOK.md#{alert.lower()}"
        for part in ("**Means.**", "**Confirm.**", "**Do.**"):
            assert part in paragraphs[alert], f"{alert} has no {part}"
