"""The row of jobs behind a run: what squeue says of it, what the supervisor writes, what the monitoring makes of it."""

import json
import os
import stat
import time
from pathlib import Path

import pytest
from fixtures.fake_runs import PretendRun

from megajukebox.monitoring.alerts import diagnose
from megajukebox.monitoring.collect.run_reader import Runs
from megajukebox.monitoring.metrics import METRICS
from megajukebox.records.job_chain import CHAIN_FILE, read_chain
from megajukebox.resilience import job_chain
from megajukebox.resilience.job_chain import parse_seconds, parse_squeue, report_queue

# As SLURM 22.05 wrote it: an array, two that wait one for the other behind it, the next stage, held ones, other jobs.
SQUEUE = """1|1|PENDING|1:00:00|1:00:00|JobArrayTaskLimit|megajukebox-top_prior|(null)
1|1|PENDING|1:00:00|1:00:00|JobArrayTaskLimit|megajukebox-top_prior|(null)
2|2|PENDING|2-00:00:00|2-00:00:00|Dependency|megajukebox-top_prior|afterany:1_*(unfulfilled)
3|3|PENDING|30:00|30:00|Dependency|megajukebox-top_prior|afterany:2_*(unfulfilled)
4|4|PENDING|10:00|10:00|Dependency|megajukebox-sample|afterok:1_*(unfulfilled)
5|5|PENDING|10:00|10:00|JobHeldUser|megajukebox-top_prior|(null)
7|1|RUNNING|59:55|1:00:00|None|megajukebox-top_prior|(null)
6|6|RUNNING|UNLIMITED|UNLIMITED|None|a|name|with|bars|(null)
8|8|RUNNING|UNLIMITED|UNLIMITED|None|x|(null)
"""


def test_those_that_come_after_a_job_are_counted_with_their_time() -> None:
    found = parse_squeue("7", "1", SQUEUE.splitlines(), now=1000.0)
    assert found is not None
    assert (found.queued, found.end_time) == (4, 1000 + 3595)
    assert found.queued_seconds == 2 * 3600 + 2 * 86400 + 1800


def test_a_job_without_a_limit_or_a_row_says_so() -> None:
    found = parse_squeue("8", None, SQUEUE.splitlines(), now=1000.0)
    assert found is not None and (found.queued, found.end_time, found.array) == (0, None, None)


def test_what_squeue_did_not_say_is_not_made_up() -> None:
    assert parse_squeue("9", "1", SQUEUE.splitlines(), now=0.0) is None
    assert parse_squeue("7", "1", [], now=0.0) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("2-03:04:05", 183845),
        ("1:00:00", 3600),
        ("30:00", 1800),
        ("0:07", 7),
        ("UNLIMITED", None),
        ("INVALID", None),
    ],
)
def test_times_are_read_as_slurm_writes_them(text: str, told: float | None) -> None:
    assert parse_seconds(text) == told


def test_the_supervisor_writes_it_down_and_outlives_a_silent_controller(
    tmp_path: Path, monkeypatch
) -> None:
    squeue, run = tmp_path / "squeue", tmp_path / "run"
    squeue.write_text(f"#!/bin/sh\ncat <<'END'\n{SQUEUE}END\n")
    squeue.chmod(squeue.stat().st_mode | stat.S_IXUSR)
    run.mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with report_queue(run):
        pass
    assert not (run / CHAIN_FILE).exists(), "outside a job there is nothing to tell"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "1")
    with report_queue(run, every=0.05):
        until = time.time() + 100
        while not (run / CHAIN_FILE).exists() and time.time() < until:
            time.sleep(0.02)
    assert json.loads((run / CHAIN_FILE).read_text())["queued"] == 4
    squeue.write_text("#!/bin/sh\nexit 1\n")
    job_chain.write_chain(run)
    assert json.loads((run / CHAIN_FILE).read_text())["queued"] == 4


# --- what is made of it


def queue(folder: Path, now: float, **told: object) -> None:
    facts = {
        "schema": 2,
        "time": now,
        "job": "7",
        "array": "1",
        "queued": 3,
        "end_time": now + 3600,
        "queued_seconds": 3 * 3600.0,
    }
    (folder / CHAIN_FILE).write_text(json.dumps(facts | told))


def test_a_chain_that_ends_before_the_run_is_a_ticket(tmp_path: Path) -> None:
    run = PretendRun(tmp_path / "run", steps=20_000).start().train(100).beat()
    (state,) = Runs([tmp_path]).read(run.now)
    assert not diagnose(state) and state.chain_seconds_left is None
    queue(run.folder, run.now)
    (state,) = Runs([tmp_path]).read(run.now)
    (problem,) = diagnose(state)
    assert problem.alert == "JukeboxSlurmChainTooShort" and problem.severity == "ticket"
    assert (
        problem.what == "this job and the 3 after it last 4 h 0 min, training takes 5 h 32 min more"
    )
    values = {row.name: row.values(state) for row in METRICS if row.name.startswith("slurm_")}
    assert values == {
        "slurm_job_seconds_left": {(): 3600},
        "slurm_chain_jobs_queued": {(): 3},
        "slurm_chain_seconds_left": {(): 4 * 3600},
    }
    queue(run.folder, run.now, queued=9, queued_seconds=9 * 3600.0)
    assert not diagnose(Runs([tmp_path]).read(run.now)[0])


def test_a_job_that_puts_itself_back_is_no_chain_that_ends(tmp_path: Path) -> None:
    run = PretendRun(tmp_path / "run", steps=20_000).start().train(100).beat()
    queue(run.folder, run.now, array=None, queued=0, queued_seconds=0.0)
    assert not diagnose(Runs([tmp_path]).read(run.now)[0])


UNUSABLE = [
    {"time": 0.0},
    {"time": None},
    {"queued": "3"},
    {"end_time": "x"},
    {"queued_seconds": None},
    {"array": 1},
]


@pytest.mark.parametrize("told", UNUSABLE, ids=str)
def test_what_is_old_or_no_number_is_not_used(tmp_path: Path, told: dict) -> None:
    queue(tmp_path, 1e6, **told)
    found = read_chain(tmp_path, 1e6 + 1)
    assert found is None or found.seconds_left(1e6) is None


def test_runs_of_one_supervisor_share_its_chain(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    queue(tmp_path, 1e6)
    assert read_chain(tmp_path / "inner", 1e6) == read_chain(tmp_path, 1e6)
