"""A metric and its alert are a row each: exporter, dashboard, rules and runbook follow from the two tables alone.

Files that a newcomer touches: where the number is logged, monitoring/metrics.py, monitoring/alerts.py, docs/RUNBOOK.md.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fixtures.fake_runs import PretendRun

from megajukebox.monitoring import alerts, generate
from megajukebox.monitoring.alerts import FAST, TICKET, AlertRow, diagnose
from megajukebox.monitoring.collect.run_reader import Runs
from megajukebox.monitoring.collect.run_state import RunState
from megajukebox.monitoring.exporters import prometheus
from megajukebox.monitoring.metrics import DATA, METRICS, MetricRow, Panel

# ---- What a newcomer writes -------------------------------------------------------------------------------------------

CACHE = MetricRow(
    "shard_cache_hit_ratio",
    "gauge",
    "Share of the shards that were found in the local cache.",
    "shard_cache_hit_ratio",
    panel=Panel(DATA, "Shard cache", "percentunit"),
)


def cache_misses(run: RunState) -> str | None:
    ratio = run.value("shard_cache_hit_ratio")
    return (
        f"{1 - ratio:.0%} of the shards are fetched" if ratio is not None and ratio < 0.5 else None
    )


CACHE_MISSES = AlertRow(
    "JukeboxCacheMisses",
    FAST,
    TICKET,
    cache_misses,
    "megajukebox_shard_cache_hit_ratio < 0.5",
    "{{ $labels.run }}: the shard cache is too small",
    "raise --cache-gb",
    "10m",
)

# ---- What follows -----------------------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> RunState:
    run = PretendRun(tmp_path / "run").start().train(100, shard_cache_hit_ratio=0.2).beat()
    (state,) = Runs([tmp_path]).read(run.now)
    return state


def test_the_exporter_exports_a_new_metric(state: RunState) -> None:
    text = prometheus.page(prometheus.run_families([state], (*METRICS, CACHE))).decode()
    assert 'megajukebox_shard_cache_hit_ratio{run="run"} 0.2' in text
    assert "# HELP megajukebox_shard_cache_hit_ratio Share of the shards" in text
    assert "megajukebox_shard_cache_hit_ratio" in prometheus.exported_names((*METRICS, CACHE))


def test_the_dashboard_draws_a_new_metric() -> None:
    panels = generate.dashboard((*METRICS, CACHE))["panels"]
    (panel,) = [panel for panel in panels if panel["title"] == "Shard cache"]
    assert panel["targets"][0]["expr"] == 'megajukebox_shard_cache_hit_ratio{run=~"$run"}'
    assert len(panels) == len(generate.dashboard()["panels"]) + 1


def test_the_lists_of_the_docs_have_a_new_metric_and_alert() -> None:
    assert "| `shard_cache_hit_ratio` | gauge |" in generate.metrics_list((*METRICS, CACHE))
    index = generate.runbook_index((*alerts.ALERTS, CACHE_MISSES))
    assert "| [JukeboxCacheMisses](#jukeboxcachemisses) | ticket | raise --cache-gb |" in index


def test_prometheus_and_watch_have_a_new_alert(
    state: RunState, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = (*alerts.ALERTS, CACHE_MISSES)
    rules = yaml.safe_load(generate.rules_yml(table))
    (rule,) = [
        rule
        for group in rules["groups"]
        for rule in group["rules"]
        if rule["alert"] == "JukeboxCacheMisses"
    ]
    assert (rule["for"], rule["labels"]) == ("10m", {"severity": "ticket"})
    monkeypatch.setattr(alerts, "ALERTS", table)
    (alert,) = [alert for alert in diagnose(state) if alert.alert == "JukeboxCacheMisses"]
    assert alert.what == "80% of the shards are fetched"


def test_names_in_the_tables_are_there_once() -> None:
    for names in ([row.name for row in METRICS], [row.name for row in alerts.ALERTS]):
        assert len(set(names)) == len(names)


def test_the_command_says_which_files_are_stale(tmp_path: Path) -> None:
    for path in generate.generated_files(Path(generate.__file__).parents[2]):
        copy = tmp_path / path.relative_to(Path(generate.__file__).parents[2])
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(path.read_text())
    command = [sys.executable, "-m", "megajukebox.monitoring.generate", "--repository"]
    assert subprocess.run([*command, str(tmp_path), "--check"]).returncode == 0
    dashboard = tmp_path / generate.DASHBOARD
    dashboard.write_text(json.dumps({"panels": []}))
    stale = subprocess.run([*command, str(tmp_path), "--check"], capture_output=True, text=True)
    assert stale.returncode == 1 and stale.stdout.strip() == str(dashboard)
    assert subprocess.run([*command, str(tmp_path)]).returncode == 0
    assert subprocess.run([*command, str(tmp_path), "--check"]).returncode == 0
