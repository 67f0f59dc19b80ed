"""What a run writes about itself: lines that survive crashes and resumes, by one process alone."""

import json
from pathlib import Path

import pytest

from megajukebox.common.logging import setup_logging
from megajukebox.records.events import (
    BadSampleSkipped,
    CheckpointRejected,
    CheckpointSaved,
    HangDetected,
    RunResumed,
    RunStarted,
)
from megajukebox.records.jsonl_tail import read_lines
from megajukebox.records.run_log import RunLog


def steps(run: Path) -> list[int]:
    return [record["step"] for record in read_lines(run / "metrics.jsonl")]


def test_metrics_and_events_are_lines_of_json_with_their_time(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "deep" / "run", writes=True)
    log.metrics(1, "train", {"loss": 2.5})
    log.metrics(1, "held_out", {"loss": 2.75, "bits_per_code": 7.0})
    log.event(RunStarted(step=0))
    log.event(CheckpointRejected(reason="step-00000020: state.json is missing"))
    metrics, events = (read_lines(log.run / name) for name in ("metrics.jsonl", "events.jsonl"))
    assert [(m["step"], m["split"], m["loss"]) for m in metrics] == [
        (1, "train", 2.5),
        (1, "held_out", 2.75),
    ]
    assert all(record.pop("time") > 1e9 for record in metrics + events)
    assert all(record.pop("schema") == 2 for record in metrics + events)
    assert events == [
        {"event": "start", "step": 0},
        {"event": "checkpoint_rejected", "reason": "step-00000020: state.json is missing"},
    ]


def test_only_the_writing_process_writes(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run", writes=False)
    log.metrics(1, "train", {"loss": 1.0})
    log.event(RunStarted())
    log.forget_after(0)
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_forgets_the_steps_it_makes_again(tmp_path: Path) -> None:
    log = RunLog(tmp_path, writes=True)
    for step in range(1, 6):
        log.metrics(step, "train", {"loss": 1.0})
    log.forget_after(3)
    assert steps(tmp_path) == [1, 2, 3]
    log.metrics(4, "train", {"loss": 1.0})
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_forgetting_before_anything_was_written_is_nothing(tmp_path: Path) -> None:
    RunLog(tmp_path, writes=True).forget_after(3)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("cut", range(1, 40, 6))
def test_a_line_cut_by_a_crash_is_left_out_and_costs_no_other(tmp_path: Path, cut: int) -> None:
    log = RunLog(tmp_path, writes=True)
    for step in (1, 2, 3):
        log.metrics(step, "train", {"loss": 1.0})
        log.event(CheckpointSaved(step=step))
    for name in ("metrics.jsonl", "events.jsonl"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-cut])
    again = RunLog(tmp_path, writes=True)
    again.forget_after(2)
    again.event(RunResumed(step=2))
    again.metrics(3, "train", {"loss": 1.0})
    assert steps(tmp_path) == [1, 2, 3]
    events = [(e["event"], e["step"]) for e in read_lines(tmp_path / "events.jsonl")]
    assert [e for e in events if e not in (("save", 3), ("steps_recomputed", 2))] == [
        ("save", 1),
        ("save", 2),
        ("resume", 2),
    ]


def test_a_log_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "events.jsonl") == []


def test_lines_are_json_that_any_program_reads(tmp_path: Path) -> None:
    log = RunLog(tmp_path, writes=True)
    log.event(BadSampleSkipped(shard="songs-000000.tar", key="ключ", reason="broken\nin two"))
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "broken\nin two" and json.loads(line)["key"] == "ключ"


def test_a_full_disk_costs_lines_and_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging("train")
    log = RunLog(tmp_path, writes=True)
    log.metrics(1, "train", {"loss": 1.0})
    (tmp_path / "metrics.jsonl").rename(tmp_path / "aside")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    for step in (2, 3):
        log.metrics(step, "train", {"loss": 1.0})
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "aside").rename(tmp_path / "metrics.jsonl")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # as far as there was room
    log.metrics(4, "train", {"loss": 1.0})
    assert steps(tmp_path) == [1, 4]
    (event,) = read_lines(tmp_path / "events.jsonl")
    assert (event["event"], event["kind"]) == ("alert", "lines_lost")
    assert event["reason"].startswith("2 lines of metrics and events")
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_s_folder_is_closed_to_others_and_one_that_was_there_stays_as_it_is(
    tmp_path: Path,
) -> None:
    RunLog(tmp_path / "runs" / "run", writes=True)
    assert (tmp_path / "runs" / "run").stat().st_mode & 0o777 & ~0o750 == 0
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    RunLog(tmp_path / "shared", writes=True)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o777


def test_a_full_disk_costs_what_any_rank_would_have_said_and_not_the_rank(tmp_path: Path) -> None:
    log = RunLog(tmp_path, writes=False, rank=3)
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    log.bad_sample("a.tar", "song-1", "damaged", "is damaged")
    log.note(HangDetected(step=5, reason="rank 3 was in step for 400 s"))
    assert log.lost == 2
    (tmp_path / "events.jsonl").unlink()
    log.note(HangDetected(step=6, reason="again"))
    assert [event["step"] for event in read_lines(tmp_path / "events.jsonl")] == [6]
