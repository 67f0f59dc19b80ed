"""What watching a run of many ranks takes grows with the ranks and with what is new, not with their square or with weeks.

Files and lines are counted, nothing is timed; benchmarks/scale.py has the seconds at 512 ranks.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.many_ranks import ManyRanks
from fixtures.work_counts import counted_calls, opened_files

from megajukebox.monitoring.collect import run_state
from megajukebox.monitoring.collect.run_reader import Runs
from megajukebox.monitoring.collect.run_state import RunState
from megajukebox.monitoring.exporters.prometheus import run_families
from megajukebox.records import events, jsonl_tail, run_log
from megajukebox.records.events import BadSampleSkipped, event_record, read_events
from megajukebox.records.run_log import RunLog
from megajukebox.resilience.preflight import FOLDER, examine
from megajukebox.resilience.restart_policy import (
    attempts_without_progress,
    classify_attempt,
    node_failures,
)

RANKS = 48
FIXED = 12  # files of a run that are opened at each look, however many ranks it has


@pytest.fixture
def run(tmp_path: Path) -> ManyRanks:
    """A run in its third attempt; rows every 20 steps, checkpoints every 500."""
    many = ManyRanks(tmp_path / "many", ranks=RANKS, steps=4000, attempts=3, bad_samples=300)
    return many.write()


def test_a_look_opens_the_files_of_each_rank_once_and_old_checkpoints_not_again(run) -> None:
    for rank in range(RANKS):
        run.write_exit(rank)
    runs = Runs([run.folder])
    runs.read(run.now)
    with opened_files(run.folder) as opened:
        (state,) = runs.read(run.now + 5)
    assert len(state.ranks) == len(state.exits) == RANKS
    assert 2 * RANKS <= len(opened) <= 2 * RANKS + FIXED
    assert not [path for path in opened if path.name in ("manifest.json", "run.yaml")]


def test_a_look_parses_the_lines_that_are_new_and_one_object_a_rank(run) -> None:
    runs = Runs([run.folder])
    runs.read(run.now)
    with (run.folder / "metrics.jsonl").open("a") as file:
        for step in (4020, 4040, 4060):
            file.write(json.dumps(run.metrics(step, "train")) + "\n")
    with counted_calls(jsonl_tail, "parsed") as calls:
        (state,) = runs.read(run.now + 5)
    assert state.last["step"] == 4060
    assert RANKS + 3 <= len(calls) <= RANKS + 3 + FIXED


@pytest.mark.parametrize("ranks", [16, 64])
def test_ranks_are_compared_once_for_a_page_of_metrics_not_once_for_each_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    small = ManyRanks(tmp_path, ranks=ranks, steps=400, attempts=1, bad_samples=0).write()
    for rank in range(0, ranks, 2):
        small.write_heartbeat(rank, time=small.now - 3600.0)
    (state,) = Runs([tmp_path]).read(small.now)
    looks: list[RunState] = []
    silent_ranks = RunState.silent_ranks.fget
    assert silent_ranks
    counting = property(lambda self: looks.append(self) or silent_ranks(self))
    monkeypatch.setattr(RunState, "silent_ranks", counting)
    with counted_calls(run_state, "slowdowns") as comparisons:
        families = {family.name: family for family in run_families([state])}
    silent = [sample.value for sample in families["megajukebox_rank_silent"].samples]
    assert silent == [1.0, 0.0] * (ranks // 2)
    assert len(families["megajukebox_rank_slowdown_ratio"].samples) == ranks
    assert len(comparisons) <= 3 and len(looks) <= 3


def test_between_two_attempts_no_line_of_a_bad_sample_is_parsed(run: ManyRanks) -> None:
    for rank in range(RANKS - 8):  # the last node's died without a word
        run.write_exit(rank)
    others = len(read_events(run.folder)) - run.bad_samples
    with counted_calls(events, "parse_event") as parsed:
        outcome = classify_attempt(run.folder, run.attempts - 1, 137)
        attempts_without_progress(run.folder)
        node_failures(run.folder)
    assert outcome.kind == "retry" and outcome.nodes == (run.nodes[-1],)
    assert parsed and len(parsed) % others == 0


def test_only_the_lines_of_bad_samples_are_left_out(tmp_path: Path) -> None:
    said = 'it said "event": "bad_sample" and "event": "skip"'
    written = [
        BadSampleSkipped(time=1.0, shard="a.tar", key="1", kind="audio", reason="cut"),
        events.AlertRaised(time=2.0, kind="sdc", reason=said),
        BadSampleSkipped(time=3.0, shard="b.tar", key="2", kind="audio", reason="cut"),
        events.HangDetected(time=4.0, phase="step"),
    ]
    lines = [json.dumps(event_record(event)) for event in written]
    lines.append(json.dumps({"time": 5.0, "event": "skip", "shard": "c.tar", "reason": "cut"}))
    lines.append(json.dumps({"time": 6.0, "event": "skip_step", "reason": "a spike"}))
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    left = read_events(tmp_path, bad_samples=False)
    assert [event.time for event in left] == [2.0, 4.0, 6.0] and left[0].reason == said
    assert len(read_events(tmp_path)) == 6


def test_a_resume_parses_the_lines_that_it_drops_and_not_the_weeks_before(run: ManyRanks) -> None:
    path = run.folder / "metrics.jsonl"
    before = path.read_bytes().splitlines()
    log = RunLog(run.folder, writes=True)
    with counted_calls(run_log, "parsed") as calls:
        log.forget_after(3900)
    kept = path.read_bytes().splitlines()
    assert kept == before[: len(kept)] and json.loads(kept[-1])["step"] == 3900
    dropped = len(before) - len(kept)
    assert dropped == 5 + 1  # rows of steps 3920 to 4000, and an evaluation
    assert len(calls) == dropped + 1
    (lost,) = [e for e in read_events(run.folder) if e.step == 3900]
    assert isinstance(lost, events.StepsRecomputed)
    assert (lost.steps, round(lost.seconds, 1)) == (100, 853.0)


def test_preflight_reads_each_report_once_and_finds_the_sick_and_the_silent_node(run) -> None:
    run = replace(run, ranks=160)
    silent, sick = run.nodes[4], run.nodes[7]

    def doctor(seconds: float) -> int:
        run.write_preflight(silent=(silent,), sick=(sick,))
        opened.clear()
        return 2

    with opened_files(run.folder / FOLDER) as opened:
        result = examine(run.folder, run.nodes, doctor)
    assert set(result.unfit) == {silent, sick} and not result.everywhere
    reports = [path for path in opened if path.name.startswith("rank-")]
    assert len(reports) == len(set(reports)) == 160 - 8
