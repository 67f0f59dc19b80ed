"""Where a run's time went: right to 1 % against made-up histories of crashes, queues, slow starts and lost work."""

import random
from pathlib import Path

import pytest
from fixtures.fake_runs import START, PretendRun

from megajukebox.monitoring.collect.goodput import TIME_PHASES
from megajukebox.monitoring.collect.run_reader import RunReader
from megajukebox.monitoring.collect.run_state import RunState


def read(run: PretendRun) -> RunState:
    return RunReader(run.folder, "run").read(now=run.now)


def history(folder: Path, seed: int, accounts: bool = True) -> PretendRun:
    """Two thousand steps with crashes at any moment."""
    draw = random.Random(seed)
    run = PretendRun(
        folder,
        steps=2000,
        step_seconds=draw.uniform(0.2, 20),
        data_seconds=draw.choice([0.0, 0.1, 1.0]),
        log_every=draw.choice([2, 10, 25]),
        save_every=draw.choice([40, 100, 333]),
        accounts=accounts,
    )
    run.start(init=draw.uniform(1, 300))
    while run.step < run.steps:
        run.train(min(draw.randint(1, 900), run.steps - run.step), noise=0.1, seed=draw.random())
        if run.step < run.steps:
            run.die(lost=draw.uniform(0, run.step_seconds), away=draw.choice([1.0, 120.0, 7200.0]))
            run.start(init=draw.uniform(1, 300), restore=draw.uniform(1, 60))
    return run.save().end()


@pytest.mark.parametrize("seed", range(10))
def test_goodput_over_restarts_is_right_to_one_percent(tmp_path: Path, seed: int) -> None:
    run = history(tmp_path, seed)
    assert read(run).account.goodput == pytest.approx(run.truth, rel=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_the_phases_add_up_to_the_wall_clock(tmp_path: Path, seed: int) -> None:
    run = history(tmp_path, seed)
    account = read(run).account
    assert account.wall == pytest.approx(run.now - START, rel=1e-3)
    assert sum(account.seconds.values()) == pytest.approx(account.wall, rel=1e-3)
    assert set(account.seconds) == set(TIME_PHASES)


@pytest.mark.parametrize("seed", range(3))
def test_an_older_run_without_an_account_is_told_from_its_steps(tmp_path: Path, seed: int) -> None:
    run = history(tmp_path, seed, accounts=False)
    assert read(run).account.goodput == pytest.approx(run.truth, rel=0.05)


def test_steps_trained_twice_count_once_and_are_called_recompute(tmp_path: Path) -> None:
    run = (
        PretendRun(tmp_path, save_every=100)
        .start(init=0)
        .train(150)
        .die(lost=0, away=0)
        .start(0, 0)
        .train(100)
    )
    state = read(run)
    assert state.account.seconds["step"] == pytest.approx(200)
    assert state.account.seconds["recompute"] == pytest.approx(50)
    assert state.recomputed_steps == 50


def test_a_run_that_never_saved_has_lost_all_when_it_starts_again(tmp_path: Path) -> None:
    run = PretendRun(tmp_path).start(init=0).train(50).die(lost=0, away=100).start(init=0).train(20)
    account = read(run).account
    assert account.seconds["step"] == pytest.approx(20) and account.seconds[
        "recompute"
    ] == pytest.approx(50)
    assert account.seconds["down"] == pytest.approx(100)


def test_the_last_day_is_told_apart_from_the_whole_run(tmp_path: Path) -> None:
    run = (
        PretendRun(tmp_path, steps=10**6, step_seconds=60, save_every=10**5)
        .start(init=0)
        .train(3000)
    )
    run.save().die(lost=0, away=43200).start(init=0, restore=0).train(
        720
    )  # the last day: half of it away
    account = read(run).account
    assert account.goodput_since(run.now - 86400) == pytest.approx(0.5, abs=0.01)
    assert account.goodput == pytest.approx(3720 * 60 / (run.now - START), rel=0.01)


def test_a_healthy_run_does_not_pay_for_the_line_that_is_yet_to_come(tmp_path: Path) -> None:
    run = PretendRun(tmp_path).start(init=0).train(119)
    assert read(run).account.goodput == pytest.approx(
        110 / 112, rel=1e-3
    )  # a save of 2 s; nine steps not told of yet


def test_time_goes_by_for_a_run_that_died_and_not_for_one_that_is_done(tmp_path: Path) -> None:
    dead = PretendRun(tmp_path / "dead").start(init=0).train(100)
    done = PretendRun(tmp_path / "done").start(init=0).train(100).end()
    for run in (dead, done):
        run.now += 10_000
    assert read(dead).account.seconds["down"] == pytest.approx(10_000, rel=0.01)
    assert read(done).account.goodput == pytest.approx(100 / 102, rel=1e-3)
