"""What became of an attempt, from what its ranks left; and which nodes a run leaves."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megajukebox.records.events import (
    AlertRaised,
    AttemptEnded,
    CheckpointSaved,
    HangDetected,
    RunResumed,
    RunStopped,
)
from megajukebox.records.jsonl_tail import read_lines
from megajukebox.records.run_log import RunLog
from megajukebox.resilience.exit_codes import EXIT_CODES, ExitRecord
from megajukebox.resilience.fencing import FencingToken
from megajukebox.resilience.restart_policy import (
    attempts_without_progress,
    classify_attempt,
    nodes_to_exclude,
)


def attempt(run: Path, *kinds: str, silent: dict[int, float] | None = None) -> int:
    """A generation of which rank i ended as kinds[i] ("" left nothing); rank i runs on node i. Returns the one before.

    `silent`: seconds before the others that a rank's heartbeat stopped.
    """
    generation = FencingToken.acquire(run)
    RunLog(run, writes=True).event(RunResumed(step=10, generation=generation.number))
    (run / "heartbeats").mkdir(exist_ok=True)
    now = time.time()
    for rank, kind in enumerate(kinds):
        beat = {"rank": rank, "host": f"n{rank}", "time": now - (silent or {}).get(rank, 0.0)}
        beat |= {"generation": generation.number, "step": 10, "phase": "step", "schema": 2}
        (run / f"heartbeats/rank-{rank:05d}.json").write_text(json.dumps(beat))
        if kind:
            ExitRecord(run, rank, generation.number).record(kind, f"{kind} happened")
            record = run / f"exits/rank-{rank:05d}.json"
            record.write_text(json.dumps(json.loads(record.read_text()) | {"host": f"n{rank}"}))
    return generation.number - 1


def test_a_finished_run_is_done(tmp_path: Path) -> None:
    before = attempt(tmp_path, "done", "done")
    (tmp_path / "DONE").touch()
    assert classify_attempt(tmp_path, before, 0).kind == "done"


def test_without_the_file_done_a_status_of_zero_is_not_believed(tmp_path: Path) -> None:
    assert classify_attempt(tmp_path, attempt(tmp_path, "", ""), 0).kind == "retry"


def test_a_run_that_was_asked_to_stop_and_saved_is_stopped(tmp_path: Path) -> None:
    before = attempt(tmp_path, "stopped", "stopped")
    RunLog(tmp_path, writes=True).event(RunStopped(step=12, reason="signal SIGUSR1"))
    found = classify_attempt(tmp_path, before, 85)
    assert (found.kind, found.reason) == ("stopped", "signal SIGUSR1")


@pytest.mark.parametrize("kind", ["config", "diverged", "no_checkpoint"])
def test_one_rank_that_needs_a_person_decides_whatever_the_others_say(
    tmp_path: Path, kind: str
) -> None:
    found = classify_attempt(tmp_path, attempt(tmp_path, "peer_failure", kind, ""), 137)
    assert found.kind == "fatal" and f"rank 1 on n1: {kind}: {kind} happened" == found.reason


def test_a_fenced_rank_decides_over_all(tmp_path: Path) -> None:
    assert classify_attempt(tmp_path, attempt(tmp_path, "config", "fenced"), 98).kind == "fenced"


def test_the_node_of_the_rank_that_left_nothing_is_blamed(tmp_path: Path) -> None:
    found = classify_attempt(tmp_path, attempt(tmp_path, "peer_failure", "", "peer_failure"), 137)
    assert found.kind == "retry" and found.nodes == ("n1",)


def test_if_no_rank_left_anything_the_one_that_fell_silent_first_is_blamed(tmp_path: Path) -> None:
    assert classify_attempt(
        tmp_path, attempt(tmp_path, "", "", "", silent={2: 20.0}), 137
    ).nodes == ("n2",)
    assert classify_attempt(tmp_path, attempt(tmp_path, "", "", ""), 137).nodes == (), (
        "killed all at once: nobody's fault"
    )


@pytest.mark.parametrize(("kind", "event"), [("hang", HangDetected), ("corrupt", AlertRaised)])
def test_a_hang_blames_the_suspects_node_and_silent_corruption_the_odd_one(
    tmp_path: Path, kind, event
) -> None:
    before = attempt(tmp_path, kind, "")
    RunLog(tmp_path, writes=True).note(event(step=10, reason="rank 1", hosts=["n1"]))
    assert classify_attempt(tmp_path, before, 75).nodes == ("n1",)


def test_a_node_named_in_an_attempt_before_is_not_blamed_for_one_that_ended_while_it_loaded(
    tmp_path: Path,
) -> None:
    before = attempt(tmp_path, "hang", "")
    log = RunLog(tmp_path, writes=True)
    log.note(HangDetected(step=10, reason="rank 1", hosts=["n1"]))
    log.note(AttemptEnded(nodes=list(classify_attempt(tmp_path, before, 75).nodes)))
    FencingToken.acquire(tmp_path)  # and dies before it says that it has begun
    assert (
        classify_attempt(tmp_path, before + 1, 137).nodes == ()
        and nodes_to_exclude(tmp_path, 2) == []
    )


def test_a_job_that_another_has_replaced_does_not_judge_the_others_ranks(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "2")
    before = attempt(tmp_path, "", "")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert classify_attempt(tmp_path, before, 85).kind == "fenced"


def test_what_earlier_attempts_left_does_not_count(tmp_path: Path) -> None:
    attempt(tmp_path, "config", "config")
    assert (
        classify_attempt(tmp_path, attempt(tmp_path, "peer_failure", "peer_failure"), 75).kind
        == "retry"
    )


def test_an_attempt_that_never_began_is_tried_again_unless_its_settings_were_wrong(
    tmp_path: Path,
) -> None:
    before = attempt(tmp_path, "peer_failure")
    assert classify_attempt(tmp_path, before + 1, 1).kind == "retry"
    assert classify_attempt(tmp_path, before + 1, 93).kind == "fatal"


def test_a_node_is_left_after_two_deaths_within_a_day(tmp_path: Path) -> None:
    log = RunLog(tmp_path, writes=True)
    log.note(AttemptEnded(nodes=["n1", "n2"]))
    assert nodes_to_exclude(tmp_path, 2) == []
    log.note(AttemptEnded(nodes=["n2"]))
    assert nodes_to_exclude(tmp_path, 2) == ["n2"]
    for _ in range(2):
        log.note(AttemptEnded(nodes=["n1"]))
    assert nodes_to_exclude(tmp_path, 1) == ["n1"], (
        "the worst first, and no more than the run can spare"
    )
    assert nodes_to_exclude(tmp_path, 2, now=time.time() + 25 * 3600) == []


def test_attempts_without_a_new_checkpoint_are_counted(tmp_path: Path) -> None:
    log = RunLog(tmp_path, writes=True)
    for expected in (1, 2, 3):
        log.note(AttemptEnded(kind="retry"))
        assert attempts_without_progress(tmp_path) == expected
    log.event(CheckpointSaved(step=5))
    assert attempts_without_progress(tmp_path) == 0
    log.note(AttemptEnded(kind="retry"))
    assert attempts_without_progress(tmp_path) == 1


def test_a_checkpoint_of_a_run_within_is_progress_too(tmp_path: Path) -> None:
    RunLog(tmp_path, writes=True).note(AttemptEnded(kind="retry"))
    RunLog(tmp_path / "order-0-1", writes=True).event(CheckpointSaved(step=5))
    assert attempts_without_progress(tmp_path) == 0


def test_a_command_that_trains_several_runs_is_done_when_its_status_says_so(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "megajukebox.cli",
        "supervise",
        "--several-runs",
        str(tmp_path),
        "--",
        "true",
    ]
    subprocess.run(command, check=True, timeout=120)
    assert (tmp_path / "DONE").exists()
    (last,) = [
        event for event in read_lines(tmp_path / "events.jsonl") if event["event"] == "attempt_end"
    ]
    assert last["kind"] == "done"


def test_every_kind_of_ending_has_a_code_that_the_shell_can_tell_apart() -> None:
    assert set(EXIT_CODES.values()) == {0, 1, 75, 85, 93, 98}
