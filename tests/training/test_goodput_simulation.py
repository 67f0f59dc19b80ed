"""The share of the time in training that `plan` forecasts is that of runs simulated failure by failure."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from fixtures.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from goodput import DAYS, FailingRun, TimeSpent, add_attempt, goodput, simulate

from megajukebox.training.planner.forecast import DAY

SMALL = FailingRun(nodes=64, rate=16.0)
RUNS = 150  # of 28 days; their mean is known to 0.05 % then


@pytest.mark.parametrize(
    "run",
    [
        SMALL,
        replace(SMALL, restart=60.0),
        replace(SMALL, save=60.0),
        replace(
            SMALL, nodes=1000, days=8.0
        ),  # in two days the restart that the end cuts short weighs 0.5 %
    ],
)
def test_the_forecast_lies_within_the_interval_of_the_simulation(run: FailingRun) -> None:
    simulated = goodput(run, RUNS)
    assert simulated.half_width < 0.005
    assert abs(simulated.mean - run.by_plan) < 1.5 * simulated.half_width + 0.0005


def test_an_interval_is_narrow_enough_to_notice_a_wrong_forecast() -> None:
    simulated = goodput(SMALL, RUNS)
    for wrong in (replace(SMALL, restart=1200.0), replace(SMALL, rate=12.0)):
        assert abs(simulated.mean - wrong.by_plan) > 2 * simulated.half_width


def test_at_a_thousand_nodes_the_first_order_alone_says_too_little() -> None:
    many = replace(SMALL, nodes=1000, days=4.0)
    simulated = goodput(many, RUNS)
    assert simulated.mean - many.by_first_order > 0.015 > 3 * simulated.half_width


@pytest.mark.parametrize("job", [None, DAY])
def test_every_second_of_a_simulated_run_is_accounted_for(job: float | None) -> None:
    run = replace(SMALL, spares=0, queue=600.0, job=job)
    spent = simulate(run, np.random.default_rng(1))
    assert spent.given_up > 0
    # The queue of a job that is given up last may reach past the end.
    assert DAYS * DAY <= spent.wall + 1e-3 <= DAYS * DAY + run.queue + 1e-2


def test_a_failure_loses_what_is_behind_the_last_save_and_a_stop_does_not() -> None:
    run = replace(SMALL, save=10.0, restart=100.0)
    life = run.restart + 2 * (run.interval + run.save) + 50.0
    for stops, lost in ((False, 50.0), (True, 0.0)):
        spent = TimeSpent()
        add_attempt(run, life, spent, is_asked_to_stop=stops)
        assert spent.seconds["lost"] == pytest.approx(lost)
        assert spent.seconds["trained"] == pytest.approx(2 * run.interval + 50.0 - lost)
        assert spent.seconds["saving"] == pytest.approx(20.0)
        assert spent.wall == pytest.approx(life)


def test_spares_save_the_queue() -> None:
    """Of 29 failures in 28 days 78 % lose a node: each one without a spare waits for an hour."""
    given = {"queue": 3600.0, "job": DAY, "restart": 60.0}
    without = goodput(replace(SMALL, spares=0, **given), RUNS)
    with_two = goodput(replace(SMALL, spares=2, **given), RUNS)
    endless = goodput(replace(SMALL, spares=None, **given), RUNS)
    assert without.given_up == pytest.approx(0.78 * without.failures, rel=0.1)
    assert with_two.mean - without.mean > 0.02
    assert endless.mean - with_two.mean < 0.003
