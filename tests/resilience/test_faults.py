"""What we kill and what happens: each fault strikes the real entry, and its run ends as it would have without."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from fixtures.interrupted_runs import (
    alone,
    by_deepspeed,
    ends,
    environment_of,
    events,
    fingerprint,
    finish,
    losses,
    pids,
    printed,
    run,
    start,
    steps,
    wait_until,
)
from fixtures.tiny_runs import write_ds_config

from megajukebox.resilience import exit_codes
from megajukebox.training import checkpoint

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("faults"),
]  # one worker trains the reference once


def supervised(out: Path, command: list[str]) -> list[str]:
    return ["megajukebox", "supervise", str(out), "--", *command]


def test_a_rank_killed_without_warning_ends_the_others_and_the_run_goes_on_as_if_nothing_had_been(
    data, straight, tmp_path
):
    out = tmp_path / "run"
    assert (
        run(supervised(out, by_deepspeed(data, out)), environment_of("kill=1@17", tmp_path))
        == exit_codes.EXIT_OK
    )
    first, last = events(out, "attempt_end")
    assert first["kind"] == "retry" and last["kind"] == "done"
    died = (tmp_path / "kill=1@17").stat().st_mtime
    assert first["time"] - died < 30, "the other rank does not wait for the dead one"
    assert [e["step"] for e in events(out, "resume")] == [15]
    assert losses(out) == losses(straight) and fingerprint(out) == fingerprint(straight)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["prior_pipeline_cpu.json", "zero1"])
def test_killed_by_zero_1_and_in_a_pipeline_a_run_also_goes_on_as_if_nothing_had_been(
    data, tmp_path, way
):
    zero1 = {"zero_optimization": {"stage": 1}, "train_micro_batch_size_per_gpu": 1}
    ds_config = (
        way
        if way.endswith(".json")
        else str(write_ds_config(tmp_path, "prior_zero3_cpu.json", **zero1))
    )
    told = ("--ds-config", ds_config, "steps=14", "save_every=5")
    straight, out = tmp_path / "straight", tmp_path / "run"
    assert run(by_deepspeed(data, straight, *told)) == exit_codes.EXIT_OK
    assert (
        run(supervised(out, by_deepspeed(data, out, *told)), environment_of("kill=1@12", tmp_path))
        == exit_codes.EXIT_OK
    )
    assert [e["step"] for e in events(out, "resume")] == [10]
    assert losses(out) == losses(straight) and fingerprint(out) == fingerprint(straight)


@pytest.mark.parametrize("fault", ["freeze", pytest.param("lock", marks=pytest.mark.slow)])
def test_a_rank_that_stops_answering_is_named_the_stacks_are_kept_and_the_run_goes_on(
    data, straight, tmp_path, fault
):
    """It is stopped, or never lets go of the interpreter, so that none of its threads runs."""
    out = tmp_path / "run"
    command = by_deepspeed(data, out, "hang_seconds=8")
    assert (
        run(supervised(out, command), environment_of(f"{fault}=1@12", tmp_path))
        == exit_codes.EXIT_OK
    )
    (hang,) = events(out, "hang")
    assert hang["suspects"] == [1] and "rank 1 on" in hang["reason"]
    stacks = (out / "hangs/generation-0001-rank-00000.txt").read_text()
    assert "train_one_step" in stacks and "Thread" in stacks
    assert events(out, "attempt_end")[0]["reason"].startswith(
        "rank 0 on"
    ) and ": hang: " in printed(out)
    assert losses(out) == losses(straight) and fingerprint(out) == fingerprint(straight)


def full_disk(folder: Path) -> None:
    """A disk of 3 MB at `folder`; skips where this user may not make one."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True
    )
    if made.returncode:
        pytest.skip("mounting a small disk takes root")


def test_a_full_disk_costs_saves_but_neither_the_run_nor_what_was_saved(data, straight, tmp_path):
    disk, out = tmp_path / "disk", tmp_path / "disk/run"
    full_disk(disk)
    try:
        process = start(by_deepspeed(data, out), environment_of("slow=0.3", tmp_path))
        wait_until(lambda: events(out, "save"))
        ballast = disk / "ballast"
        ballast.write_bytes(b"0" * max(0, shutil.disk_usage(disk).free - 60_000))
        wait_until(lambda: events(out, "save_failed"))
        assert checkpoint.newest(out)[0] is not None, "what was saved before is still there"
        failed = events(out, "save_failed")[0]
        assert "free" in failed["reason"]
        wait_until(lambda: steps(out) > failed["step"])
        ballast.unlink()
        assert finish(process) == exit_codes.EXIT_OK
        assert events(out, "save")[-1]["step"] == 40
        assert losses(out) == losses(straight) and fingerprint(out) == fingerprint(straight)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_start_that_was_thought_dead_leaves_before_it_writes_anything(data, tmp_path):
    out = tmp_path / "run"
    old = start(alone(data, out), environment_of("slow=0.2", tmp_path))
    wait_until(lambda: steps(out) >= 7)
    os.kill(old.pid, signal.SIGSTOP)
    assert run(alone(data, out)) == exit_codes.EXIT_OK
    before = {path: path.stat().st_mtime_ns for path in (out / "checkpoints").rglob("*")}
    lines = len(events(out))
    os.kill(old.pid, signal.SIGCONT)
    assert finish(old) == exit_codes.EXIT_FENCED
    assert before == {path: path.stat().st_mtime_ns for path in (out / "checkpoints").rglob("*")}
    assert (
        len(events(out)) == lines
        and ends(out)[0]["generation"] == 2
        and ends(out)[0]["exit_class"] == "done"
    )


def test_with_checkpoints_but_none_whole_no_step_is_trained_and_a_person_is_called(data, tmp_path):
    out = tmp_path / "run"
    assert run(alone(data, out, "--stop-after", "6")) == exit_codes.EXIT_OK
    for part in out.glob("checkpoints/step-*/state/*"):
        os.truncate(part, 100)
    before = steps(out)
    assert run(supervised(out, alone(data, out))) == exit_codes.EXIT_FATAL
    assert (
        steps(out) == before
        and events(out, "start")[0]["step"] == 0
        and len(events(out, "start", "resume")) == 1
    )
    assert (
        ends(out)[0]["exit_class"] == "no_checkpoint"
        and "none is whole" in events(out, "alert")[-1]["reason"]
    )


def test_a_command_that_always_fails_is_tried_three_times_and_then_a_person_is_called(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    done = subprocess.run(supervised(out, ["false"]), env=environment_of(), timeout=120)
    assert done.returncode == exit_codes.EXIT_FATAL
    assert (
        len(events(out, "attempt_end")) == 3
        and "saved nothing" in events(out, "alert")[0]["reason"]
    )


def test_a_signal_between_two_attempts_is_not_forgotten(tmp_path):
    """SLURM sends one signal before its time is up: an attempt begun after it would be killed, and save nothing."""
    out = tmp_path / "run"
    out.mkdir()
    process = subprocess.Popen(supervised(out, ["false"]), env=environment_of())
    wait_until(lambda: events(out, "attempt_end"))
    process.send_signal(signal.SIGUSR1)
    assert process.wait(120) == exit_codes.EXIT_OK
    assert len(events(out, "attempt_end")) == 1, (
        "it waits some seconds between two, and was told then"
    )


def test_a_run_folder_that_cannot_be_written_is_the_users_to_mend(data, tmp_path):
    (tmp_path / "file").touch()
    out = tmp_path / "file/run"
    done = subprocess.run(
        alone(data, out), env=environment_of(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == exit_codes.EXIT_FATAL and "file/run" in done.stderr


def test_stop_and_save_are_files_anybody_may_leave(data, tmp_path):
    out = tmp_path / "run"
    process = start(alone(data, out, "save_every=1000"), environment_of("slow=0.3", tmp_path))
    wait_until(lambda: steps(out) >= 3)
    (out / "SAVE").touch()
    wait_until(lambda: events(out, "save"))
    wait_until(lambda: not (out / "SAVE").exists())
    (out / "STOP").touch()
    assert finish(process) == exit_codes.EXIT_PREEMPTED
    last = events(out)[-1]
    assert last["event"] == "stop" and last["reason"] == "the file STOP" and last["step"] < 40
    assert ends(out)[0]["exit_class"] == "stopped" and len(pids(out)) == 1
    assert run(supervised(out, alone(data, out))) == exit_codes.EXIT_OK
    assert len(events(out, "resume", "attempt_end")) == 0, (
        "supervise does not start what was told to stop"
    )
