"""What `watch` calls a run, and the problems that it names: one fault each, and none in a healthy run."""

import json
from pathlib import Path

import pytest
from fixtures.fake_runs import CODES, PretendRun

from megajukebox.monitoring.alerts import ALERTS, diagnose
from megajukebox.monitoring.collect.run_reader import RunReader
from megajukebox.monitoring.collect.run_state import AlertThresholds, RunState
from megajukebox.records.events import (
    MIN_LOSS_SCALE,
    NEEDS_OPERATOR,
    SDC,
    AlertRaised,
    AttemptEnded,
    Rewound,
    RunResumed,
    SaveFailed,
    StepSkipped,
)

LIMITS = AlertThresholds(stall=120, silent=60, checkpoint=300, down=900)


def read(run: PretendRun, later: float = 0.0) -> RunState:
    return RunReader(run.folder, "run", LIMITS).read(now=run.now + later)


def alerts(run: PretendRun, later: float = 0.0) -> set[str]:
    return {problem.alert for problem in diagnose(read(run, later))}


@pytest.fixture
def run(tmp_path: Path) -> PretendRun:
    return PretendRun(tmp_path / "run", ranks=4).start().train(250).beat()


def exits(run: PretendRun, code: int, reason: str) -> None:
    folder = run.folder / "exits"
    folder.mkdir()
    record = {
        "rank": 0,
        "host": "node0",
        "code": code,
        "class": "x",
        "reason": reason,
        "time": run.now,
    }
    (folder / "rank-00000.json").write_text(json.dumps(record))


def test_a_healthy_run_has_no_problem_at_any_moment_of_its_life(tmp_path: Path) -> None:
    run = PretendRun(tmp_path / "run").start().beat()
    reader = RunReader(run.folder, "run", LIMITS)
    for step in range(100):
        run.train(5, seed=step).beat()
        assert not diagnose(reader.read(run.now)), step
    run.end("stop", stop_after=500)
    assert read(run, 1e6).status == "stopped" and not alerts(run, 1e6)
    run.start().train(500).save().end("done")
    (run.folder / "DONE").touch()
    assert read(run, 1e6).status == "done" and not alerts(run, 1e6)


@pytest.mark.parametrize(
    ("later", "status"), [(0, "training"), (59, "training"), (61, "waiting"), (901, "down")]
)
def test_a_run_whose_processes_are_gone_waits_and_then_is_down(
    run: PretendRun, later: float, status: str
) -> None:
    assert read(run, later).status == status
    assert ("JukeboxDown" in alerts(run, later)) == (status == "down")


def test_a_run_stopped_by_its_time_limit_is_wanted_and_one_stopped_by_a_person_is_not(
    run: PretendRun,
) -> None:
    run.end("stop", signal=10, reason="signal SIGUSR1")
    assert [read(run, later).status for later in (1, 1000)] == ["waiting", "down"]
    (run.folder / "STOP").touch()
    assert read(run, 1000).status == "stopped"


def test_the_supervisors_words_do_not_hide_how_a_run_ended(run: PretendRun) -> None:
    run.end("stop", stop_after=250).log.note(AttemptEnded(kind="stopped", reason="x"))
    assert read(run, 1000).status == "stopped"


def test_a_stalled_run_says_where_its_ranks_are(run: PretendRun) -> None:
    run.now += 180
    run.beat(
        **{
            f"r{n}": {"phase_since": run.now - 180, "phase": "data_wait" if n == 2 else "step"}
            for n in range(4)
        }
    )
    (problem,) = [p for p in diagnose(read(run)) if p.alert == "JukeboxStalled"]
    assert "no step for 3 min" in problem.what and "data_wait, step" in problem.what


def test_a_long_step_of_a_slow_run_is_no_stall(tmp_path: Path) -> None:
    run = PretendRun(tmp_path / "run", step_seconds=60).start().train(30)
    run.now += 250
    run.beat(**{f"r{n}": {"phase_since": run.now - 250} for n in range(2)})
    assert "JukeboxStalled" not in alerts(run)


def test_a_silent_rank_is_named_with_its_host(run: PretendRun) -> None:
    run.beat(r3={"time": run.now - 70, "phase": "step"})
    (problem,) = diagnose(read(run))
    assert problem.alert == "JukeboxRankSilent" and "rank 3 on node3" in problem.what


def test_ranks_left_over_from_an_attempt_on_more_ranks_are_not_called_silent(
    run: PretendRun,
) -> None:
    run.beat(**{f"r{n}": {"generation": 1} for n in range(4)}).die(away=300).start().train(20)
    run.beat(r0={"generation": 2}, r1={"generation": 2}, r2=None, r3=None)
    assert len(read(run).ranks) == 2 and not alerts(run)


def test_an_exit_that_wants_a_person_tells_why(run: PretendRun) -> None:
    exits(run, 93, "the preset has changed")
    (problem,) = [p for p in diagnose(read(run, 61)) if p.alert == "JukeboxNeedsOperator"]
    assert problem.severity == "page" and "the preset has changed" in problem.what
    assert read(run, 61).status == "failed"


def test_a_supervisor_that_calls_a_person_is_heard_at_once(run: PretendRun) -> None:
    """What it found may have kept every rank from starting: none left an ending."""
    run.log.event(AlertRaised(reason="disk of /runs: cannot be written to", kind=NEEDS_OPERATOR))
    (problem,) = [p for p in diagnose(read(run)) if p.alert == "JukeboxNeedsOperator"]
    assert problem.what == "training ended: disk of /runs: cannot be written to"
    run.log.event(RunResumed(step=run.step))
    assert "JukeboxNeedsOperator" not in alerts(run)


def test_an_old_exit_record_says_nothing_of_a_new_attempt(run: PretendRun) -> None:
    exits(run, 93, "the preset had changed")
    run.die().start().train(10).beat()
    assert read(run).status == "training" and not alerts(run)


def test_a_loss_that_is_no_number(run: PretendRun) -> None:
    run.train(10, loss=float("nan")).beat()
    assert "JukeboxLossNaN" in alerts(run)
    run.log.event(StepSkipped(step=run.step, kind="nan", reason="loss is nan"))
    assert "JukeboxLossNaN" not in alerts(run)  # it never reached the weights


def test_skipped_steps_are_told_when_they_are_many(run: PretendRun) -> None:
    for n in range(10):
        run.log.event(
            StepSkipped(step=run.step - n, kind="nan", reason="the gradient is not finite")
        )
    assert not alerts(run)
    run.log.event(StepSkipped(step=run.step, kind="nan", reason="the gradient is not finite"))
    assert alerts(run) == {"JukeboxLossNaN"}
    assert not alerts(run.train(100).beat())


def test_a_spike_is_told_while_it_lasts(run: PretendRun) -> None:
    assert alerts(run.train(10, loss=5.4).beat()) == {"JukeboxLossSpike"}
    assert not alerts(run.train(100).beat())


def test_a_checkpoint_that_is_late(run: PretendRun) -> None:
    run.save_every = 10**9
    assert not alerts(run.train(240).beat())
    assert alerts(run.train(20).beat()) == {"JukeboxCheckpointStale"}


def test_checkpoints_that_lost_a_file(run: PretendRun) -> None:
    for state in run.folder.glob("checkpoints/*/state.bin"):
        state.write_bytes(b"short")
    assert "JukeboxNoValidCheckpoint" in alerts(run)


def test_a_save_that_failed_until_one_succeeds(run: PretendRun) -> None:
    run.log.event(SaveFailed(step=run.step, reason="no room"))
    assert alerts(run) == {"JukeboxSaveFailed"}
    assert not alerts(run.save().beat())


def test_clips_that_cannot_be_read(run: PretendRun) -> None:
    for n in range(20):
        run.log.bad_sample("songs-000000.tar", f"song{n}", "truncated", "it ends early")
    run.train(10, bad_samples=20.0).beat()
    (problem,) = diagnose(read(run))
    assert problem.alert == "JukeboxDataLoss" and "20 truncated" in problem.what


def test_a_restart_storm(run: PretendRun) -> None:
    for _ in range(4):
        run.die(away=10).start().train(5).beat()
    assert not alerts(run)
    assert alerts(run.die(away=10).start().train(5).beat()) == {"JukeboxCrashLooping"}


def test_a_slow_rank_is_named(run: PretendRun) -> None:
    run.beat(**{f"r{n}": {"own_seconds": 1.3 if n == 1 else 1.0} for n in range(4)})
    (problem,) = diagnose(read(run))
    assert (
        problem.alert == "JukeboxStraggler" and "rank 1 on node1 takes 1.30 times" in problem.what
    )


def test_waiting_for_data(tmp_path: Path) -> None:
    assert alerts(PretendRun(tmp_path, data_seconds=0.5).start().train(100).beat()) == {
        "JukeboxInputBound"
    }


def test_a_loss_scale_at_its_floor(run: PretendRun) -> None:
    assert alerts(run.train(10, loss_scale=1.0).beat()) == {"JukeboxLossScaleAtMinimum"}


def test_a_collapsed_codebook_is_named_by_its_level(tmp_path: Path) -> None:
    used = {"top/used": 3.0, "bottom/used": CODES - 1.0}
    run = PretendRun(tmp_path, stage="vqvae", steps=5000).start().train(50, **used)
    assert not alerts(run.beat()), "codebooks are still found"
    (problem,) = diagnose(read(run.train(1000, **used).beat()))
    assert (
        problem.alert == "JukeboxCodebookCollapse"
        and problem.what == "codebook top uses 9% of its codes"
    )


def test_a_day_of_little_use(tmp_path: Path) -> None:
    run = (
        PretendRun(tmp_path, steps=10**6, step_seconds=60)
        .start()
        .train(300)
        .die(away=36000)
        .start()
        .train(300)
    )
    (problem,) = diagnose(read(run.beat()))
    assert problem.alert == "JukeboxGoodputLow" and problem.what.endswith("is down")


def test_a_disk_without_room_for_two_checkpoints(run: PretendRun) -> None:
    folder = run.folder / "checkpoints" / "step-00000200"
    manifest = {"files": {"state.bin": {"bytes": 10**18, "sha256": ""}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "JukeboxDiskFull" in alerts(run)


def test_the_weights_of_ranks_that_differ(run: PretendRun) -> None:
    reason = "weights of ranks [1] on node1 are not those of the other ranks (silent corruption)"
    run.log.event(AlertRaised(step=run.step, kind=SDC, reason=reason))
    assert alerts(run) == {"JukeboxSilentDataCorruption"} and read(run).sdc_mismatches == 1
    assert not alerts(run.train(100).beat())


def test_a_run_that_went_back_to_a_smaller_rate_tells_somebody(run: PretendRun) -> None:
    reason = "gradients overflow at the lowest fp16 loss scale; went back to step 100"
    run.log.event(Rewound(step=run.step, reason=reason, to_step=100, lr_factor=0.5))
    run.log.event(AlertRaised(step=run.step, kind=MIN_LOSS_SCALE, reason=reason))
    assert alerts(run) == {"JukeboxLearningRateReduced"} and read(run).sdc_mismatches == 0
    assert not alerts(run.train(100).beat())


def test_too_few_jobs_in_the_queue(run: PretendRun) -> None:
    """What is read of the queue: tests/resilience/test_job_chain.py."""
    told = {
        "time": run.now,
        "array": "1",
        "queued": 1,
        "schema": 2,
        "end_time": run.now + 60,
        "queued_seconds": 60.0,
    }
    (run.folder / "slurm_chain.json").write_text(json.dumps(told))
    assert alerts(run) == {"JukeboxSlurmChainTooShort"}


def test_settings_that_cannot_be_read_and_what_was_read_before(run: PretendRun) -> None:
    """More of what cannot be read: test_hostile_runs.py."""
    reader = RunReader(run.folder, "run", LIMITS)
    assert not diagnose(reader.read(run.now))
    (run.folder / "run.yaml").write_text("stage: [")
    state = reader.read(run.now)
    assert [problem.alert for problem in diagnose(state)] == ["JukeboxRunUnreadable"]
    assert state.target == 1000 and state.step == 250


def test_every_problem_is_tried_above() -> None:
    told = {row.name for row in ALERTS if row.predicate}
    assert not {alert for alert in told if alert not in Path(__file__).read_text()}
