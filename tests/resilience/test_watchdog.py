"""The pulse: where the time went, who is to blame for a hang, and which start of a run is the newest."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from fixtures.paths import TESTS
from fixtures.work_counts import counted_calls

from megajukebox.commands import control
from megajukebox.common.errors import UserError
from megajukebox.records.events import HangDetected, read_events
from megajukebox.records.exits import exit_path, read_exit
from megajukebox.records.heartbeat import Heartbeat, heartbeat_path
from megajukebox.records.jsonl_tail import read_lines
from megajukebox.records.run_log import RunLog
from megajukebox.resilience import watchdog
from megajukebox.resilience.exit_codes import ExitRecord, TerminateRun, classify_error
from megajukebox.resilience.fencing import FencingToken
from megajukebox.resilience.hang_attribution import attribute_hang
from megajukebox.resilience.signals import Request, SignalHandler
from megajukebox.resilience.watchdog import HangTimeouts, Watchdog


def pulse(run: Path, limits: HangTimeouts | None = None) -> Watchdog:
    return Watchdog(
        RunLog(run, writes=True),
        FencingToken.acquire(run),
        limits or HangTimeouts(),
        ExitRecord(run),
        interval=0.2,
    )


def beats(*places: tuple[int, str], silent: dict[int, float] | None = None) -> list[Heartbeat]:
    ages = silent or {}
    return [
        Heartbeat(rank=i, host=f"n{i}", step=step, phase=phase, time=1000.0 - ages.get(i, 0.0))
        for i, (step, phase) in enumerate(places)
    ]


def ranks(found: list) -> list[int]:
    return [suspect.rank for suspect in found]


def test_every_second_belongs_to_one_phase(tmp_path: Path) -> None:
    heart = pulse(tmp_path)
    heart.enter_phase("step")
    for _ in range(3):
        with heart.phase("data_wait"):
            time.sleep(0.02)
        time.sleep(0.01)
    with heart.phase("checkpoint_save"):
        time.sleep(0.05)
    born = psutil.Process().create_time()
    before, account, after = time.time(), heart.phase_seconds(), time.time()
    assert before - 0.01 < born + sum(account.values()) < after + 0.01
    assert (
        account["time_data_wait_seconds"] >= 0.06
        and account["time_checkpoint_save_seconds"] >= 0.05
    )
    assert account["time_step_seconds"] >= 0.03 and account["time_eval_seconds"] == 0
    phases = ("init", "data_wait", "step", "checkpoint_save", "checkpoint_load", "eval")
    assert set(account) == {f"time_{phase}_seconds" for phase in phases}


def test_the_heartbeat_says_what_is_promised(tmp_path: Path) -> None:
    heart = pulse(tmp_path)
    heart.enter_phase("step")
    heart.record_step(7, 0.5, 0.1)
    heart.write_heartbeat()
    told = json.loads((tmp_path / "heartbeats/rank-00000.json").read_text())
    assert {
        "rank",
        "host",
        "pid",
        "time",
        "step",
        "phase",
        "phase_since",
        "step_seconds",
    } <= set(told)
    assert (told["step"], told["phase"], told["step_seconds"], told["pid"]) == (
        7,
        "step",
        0.5,
        os.getpid(),
    )


def test_the_first_step_may_take_long_and_later_ones_ten_times_their_usual(tmp_path: Path) -> None:
    heart = pulse(tmp_path, HangTimeouts(step=30, slow=600))
    heart.enter_phase("step")
    assert heart.timeout() == 600
    heart.record_step(1, 2.0, 0.1)
    assert heart.timeout() == 30
    for step in range(2, 9):
        heart.record_step(step, 20.0, 0.1)
    assert heart.timeout() == 200
    with heart.phase("checkpoint_save"):
        assert heart.timeout() == 600


def test_a_section_that_says_that_it_goes_on_may_take_longer_than_its_limit(tmp_path: Path) -> None:
    """A large checkpoint is converted for other numbers of processes in three quarters of an hour."""
    heart = pulse(tmp_path, HangTimeouts(step=30, slow=600))
    with heart.phase("checkpoint_load"):
        begun = heart.phase_since
        heart.last_progress -= 700
        assert heart.is_hung()
        heart.keep_alive()
        assert not heart.is_hung() and heart.phase_since == begun, (
            "since when it loads is told as before"
        )
        heart.last_progress -= 700
        assert heart.is_hung()


def test_silent_ranks_are_suspected_first() -> None:
    told = beats((5, "step"), (5, "step"), (5, "step"), silent={1: 60.0})
    found = attribute_hang(told, 1000.0, stale=15)
    assert (
        ranks(found) == [1]
        and "silent for 60 s in step" in found[0].evidence
        and found[0].host == "n1"
    )


def test_else_the_minority_is_suspected() -> None:
    assert ranks(
        attribute_hang(beats((5, "step"), (5, "data_wait"), (5, "step"), (5, "step")), 1000.0, 15)
    ) == [1]
    assert ranks(attribute_hang(beats((5, "step"), (4, "step")), 1000.0, 15)) == [1]
    assert ranks(attribute_hang(beats((5, "checkpoint_save"), (5, "step")), 1000.0, 15)) == [0]
    assert attribute_hang(beats((5, "step"), (5, "step")), 1000.0, 15) == [], (
        "all in one place: not a rank's fault"
    )


@pytest.mark.parametrize("seed", range(20))
def test_of_many_ranks_the_one_that_stopped_is_named(seed: int) -> None:
    step, culprit = 100 + seed, (seed * 7919) % 64
    places = [(step, "step")] * 64
    places[culprit] = (step, "data_wait") if seed % 2 else (step - 1, "step")
    assert ranks(attribute_hang(beats(*places), 1000.0, 15)) == [culprit]


HANG = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from resilience.test_watchdog import HangTimeouts, pulse
heart = pulse(Path(sys.argv[1]), HangTimeouts(step=3.0, slow=600))
heart.end.generation = heart.generation.number
heart.enter_phase("step")
heart.record_step(1, 0.01, 0.01)
heart.start()
def waiting_for_the_others():
    time.sleep(300)
waiting_for_the_others()
"""


def test_a_hang_leaves_stacks_an_event_and_status_75(tmp_path: Path) -> None:
    program = HANG.format(tests=str(TESTS))
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 75, done.stderr
    assert (
        "waiting_for_the_others" in (tmp_path / "hangs/generation-0001-rank-00000.txt").read_text()
    )
    (hang,) = read_lines(tmp_path / "events.jsonl")
    assert hang["event"] == "hang" and "was in step for" in hang["reason"]
    end = json.loads((tmp_path / "exits/rank-00000.json").read_text())
    assert (end["exit_class"], end["code"], end["generation"]) == ("hang", 75, 1)


def test_of_many_hung_ranks_one_reads_the_heartbeats_and_all_name_its_suspects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """512 ranks that each read 512 heartbeats would open 262,144 files of a shared disk at the same moment."""
    monkeypatch.setattr(watchdog, "STACKS_GRACE", 0.0)
    monkeypatch.setattr(watchdog, "leave_now", lambda code: None)
    token = FencingToken.acquire(tmp_path)
    hung = []
    for rank in range(4):
        log = RunLog(tmp_path, writes=rank == 0, rank=rank)
        hung.append(Watchdog(log, token, HangTimeouts(), ExitRecord(tmp_path, rank, token.number)))
        hung[-1].enter_phase("step")
        hung[-1].start()
        hung[-1].stop()
        hung[-1].write_heartbeat()
    record = json.loads(heartbeat_path(tmp_path, 2).read_text())
    heartbeat_path(tmp_path, 2).write_text(json.dumps(record | {"time": record["time"] - 900}))
    with counted_calls(watchdog, "read_heartbeats") as reads:
        for each in hung[:2]:
            each._end_hang()
    assert len(reads) == 1
    (event,) = [e for e in read_events(tmp_path) if isinstance(e, HangDetected)]
    assert event.suspects == [2]
    for rank in (0, 1):
        left = read_exit(exit_path(tmp_path, rank))
        assert left and f"rank {rank} was in step" in left.reason and "rank 2 on" in left.reason


def test_ranks_that_do_not_find_each_other_are_not_waited_for_for_ever() -> None:
    lines = ["import time", "from megajukebox.resilience.exit_codes import within"]
    lines += ["with within(0.3, 'the ranks did not meet'): time.sleep(300)"]
    program = "\n".join(lines)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 75 and "the ranks did not meet within 0 s; start again" in done.stderr


def test_stop_and_save_are_said_to_runs_only(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run folder \(it has no run.yaml\)"):
        control.stop(tmp_path)
    (tmp_path / "run.yaml").touch()
    control.stop(tmp_path)
    control.save(tmp_path)
    assert (tmp_path / "STOP").exists() and (tmp_path / "SAVE").exists()
    control.stop(tmp_path, undo=True)
    assert not (tmp_path / "STOP").exists()
    (tmp_path / "SAVE").unlink()
    (tmp_path / "DONE").touch()
    for entry in (
        control.stop,
        control.save,
    ):  # an order that nobody obeys would wait for whoever trains it on
        with pytest.raises(UserError, match="is done"):
            entry(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"run.yaml", "DONE"}


def test_the_last_start_is_the_one_that_counts(tmp_path: Path) -> None:
    first = FencingToken.acquire(tmp_path)
    first.check()
    second = FencingToken.acquire(tmp_path)
    assert (
        (first.number, second.number) == (1, 2) and second.is_current() and not first.is_current()
    )
    with pytest.raises(TerminateRun, match="another start"):
        first.check()


def test_two_starts_at_the_same_moment_do_not_both_think_they_are_it(tmp_path: Path) -> None:
    first = FencingToken.acquire(tmp_path)
    second = FencingToken(
        tmp_path, first.number, "other"
    )  # read the same number before either wrote
    assert first.is_current() and not second.is_current()


def test_an_older_start_does_not_write_over_what_a_newer_one_said_of_its_end(
    tmp_path: Path,
) -> None:
    ExitRecord(tmp_path, 0, 2).record("done", "")
    ExitRecord(tmp_path, 0, 1).record("fenced", "late")
    assert json.loads((tmp_path / "exits/rank-00000.json").read_text())["exit_class"] == "done"


@pytest.fixture
def orders(tmp_path: Path):
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    }
    yield SignalHandler(tmp_path, 0, FencingToken.acquire(tmp_path))
    for number, handler in before.items():
        signal.signal(number, handler)


def look(orders: SignalHandler) -> int:
    orders._looked = float("-inf")
    return orders.now()


def test_files_signals_and_newer_starts_are_orders(orders: SignalHandler, tmp_path: Path) -> None:
    assert look(orders) == Request.NONE
    (tmp_path / "SAVE").touch()
    assert look(orders) == Request.SAVE
    orders.saved(Request.SAVE)
    assert look(orders) == Request.NONE and not (tmp_path / "SAVE").exists()
    (tmp_path / "STOP").touch()
    assert look(orders) == Request.STOP and orders.reason == "the file STOP"
    (tmp_path / "STOP").unlink()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert look(orders) == Request.STOP and orders.reason == "signal SIGUSR1"
    FencingToken.acquire(tmp_path)
    assert look(orders) == Request.FENCED


def test_only_rank_0_asks_the_file_system(orders: SignalHandler, tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    orders.rank = 3
    assert look(orders) == Request.NONE


def test_exceptions_mean_an_ending() -> None:
    peer = RuntimeError(
        "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711"
    )
    assert classify_error(peer) == "peer_failure"
    assert classify_error(RuntimeError("shapes do not match")) == "bug"
    assert (
        classify_error(ValueError("x")) == "bug"
        and classify_error(OSError(28, "No space left")) == "storage"
    )
    assert (
        classify_error(PermissionError(13, "no")) == "config"
        and classify_error(MemoryError()) == "out_of_memory"
    )
    assert classify_error(TerminateRun("fenced", "x")) == "fenced"
