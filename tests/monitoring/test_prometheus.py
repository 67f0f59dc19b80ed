"""A real Prometheus scrapes real tiny runs: alerts fire and resolve, and every query of the dashboard finds data."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PRESET, environment
from fixtures.fault_injection import FAULTS, clean, seconds_to_alert
from fixtures.monitoring_stack import Rig, faster
from fixtures.paths import ROOT

from megajukebox.monitoring import generate

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("prometheus"),
]  # one worker starts them once
MONITORING = ROOT / "monitoring"
# A healthy VQ-VAE on CPUs has none of these: its panels are empty, not 0.
NOT_HERE = (
    "alert_active",
    "cross_entropy_per_code",
    "loss_scale",
    "tokens_per_second",
    "utilization_ratio",
)
NOT_HERE += ("gpu_", "bad_samples_total")


@pytest.fixture(scope="module")
def songs(tmp_path_factory) -> Path:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (apt-get install prometheus)")
    out = tmp_path_factory.mktemp("songs") / "songs"
    command = [
        sys.executable,
        "-m",
        "megajukebox.commands.prepare",
        "demo:9",
        "--out",
        str(out),
        "--preset",
        str(PRESET),
    ]
    subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=200)
    return out


@pytest.fixture(scope="module")
def rig(songs: Path, tmp_path_factory):
    """A healthy run on two ranks, watched."""
    rig = Rig(tmp_path_factory.mktemp("rig"), songs)
    try:
        rig.train("healthy", "log_every=1", ranks=2)
        now = time.time()
        queue = {
            "time": now,
            "job": "7",
            "array": "1",
            "schema": 2,
            "end_time": now + 86400,
            "queued": 3,
            "queued_seconds": 3 * 86400,
        }
        (rig.runs / "healthy" / "slurm_chain.json").write_text(
            json.dumps(queue)
        )  # as its supervisor would under SLURM
        rig.wait_for_step("healthy", 25)
        yield rig
    finally:
        clean(rig)


def test_a_healthy_run_raises_no_alert(rig: Rig) -> None:
    assert (
        rig.firing() - {"JukeboxCodebookCollapse"} == set()
    )  # a few steps old: its codebooks are still bad
    (run,) = rig.query("megajukebox_running")
    assert run["metric"]["run"] == "healthy" and run["value"][1] == "1"


def test_every_query_of_the_dashboard_finds_data(rig: Rig) -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    queries = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    ]
    assert len(queries) > 30
    empty = [query for query in queries if not rig.query(query.replace("$run", ".*"))]
    assert not [query for query in empty if not any(name in query for name in NOT_HERE)]


def test_every_recorded_rule_is_evaluated_without_error(rig: Rig) -> None:
    rules = [rule for group in rig.ask("rules")["groups"] for rule in group["rules"]]
    assert len(rules) > 20 and {rule["health"] for rule in rules} == {"ok"}


def test_a_stopped_rank_is_named_by_an_alert_that_resolves_when_it_goes_on(rig: Rig) -> None:
    victim = rig.pids("healthy")[1]
    os.kill(victim, signal.SIGSTOP)
    rig.wait(lambda: "JukeboxRankSilent" in rig.firing("healthy"), 120)
    (alert,) = rig.query('ALERTS{alertname="JukeboxRankSilent", alertstate="firing"}')
    assert alert["metric"]["rank"] == "1"
    os.kill(victim, signal.SIGCONT)
    rig.wait(lambda: not rig.firing("healthy") & {"JukeboxRankSilent", "JukeboxStalled"}, 120)


def test_a_dead_exporter_is_told_and_a_new_one_knows_everything(rig: Rig) -> None:
    rig.end(rig.exporter)
    rig.wait(lambda: "JukeboxWatcherBlind" in rig.firing(), 120)
    rig.exporter = rig.start_exporter()
    rig.wait(
        lambda: "JukeboxWatcherBlind" not in rig.firing() and rig.query("megajukebox_step > 25"),
        120,
    )


def test_no_panel_draws_what_nothing_measured() -> None:
    panels = generate.dashboard()["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    assert not [query for query in queries if "vector(" in query]
    positions = [tuple(panel["gridPos"].values()) for panel in panels]
    assert len(set(positions)) == len(positions)


def test_faster_rules_differ_in_their_durations_alone() -> None:
    rules = (MONITORING / "rules.yml").read_text()
    assert (
        re.sub(r"\d+ms", "", faster(rules)).count("[]")
        == len(re.findall(r"\[\d+[smh]\]", rules)) - 1
    )
    assert faster("predict_linear(x[6h], 4 * 3600) < 0") == "predict_linear(x[360000ms], 240) < 0"
    assert "[1800ms]" in faster("increase(x[30m])", 1000) and "for: 15000ms" in faster("for: 15m")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_raises_its_alert_in_time(name: str, songs: Path, tmp_path: Path) -> None:
    if name in ("full disk", "no room for a checkpoint") and os.geteuid() != 0:
        pytest.skip("a small tmpfs is mounted by root alone")
    rig = Rig(tmp_path / "rig", songs)
    try:
        assert seconds_to_alert(rig, FAULTS[name]) < FAULTS[name].limit
    finally:
        clean(rig)
