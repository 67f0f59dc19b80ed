"""How much of the time a run of a thousand nodes trains, simulated failure by failure, beside the formula of `plan`.

    python benchmarks/goodput.py                  # a minute; docs/goodput.png and benchmarks/results/goodput.json

A run of 28 days is simulated again and again. Nodes fail at random (exponentially); a failure loses what no checkpoint
holds and takes a restart; a node that is lost is replaced by a spare of the job, and without one by the next job of the
chain, which waits for the queue; jobs end at their time limit. The formula knows neither spares nor limits: where the
simulation leaves them out too, the two must agree (tests/training/test_goodput_simulation.py).

Rates of failures, of 1000 nodes of eight GPUs in a day:
  3.8  Llama 3: 419 unexpected interruptions in 54 days on 16,384 H100s, 78 % of them by hardware (Llama Team 2024, 3.3.4)
  6.5  the fleet of Meta's RSC-1, 16,000 A100s (Kokolis et al. 2025)
  16   the bad weeks of BLOOM and OPT, as `plan` has them
"""

import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from megajukebox.common.provenance import made_by
from megajukebox.training.planner.forecast import DAY, failures

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "goodput.json"
PLOT = ROOT / "docs" / "goodput.png"

LLAMA_3_NODES = 16_384 / 8
RATES = {
    "Llama 3": round(419 / (LLAMA_3_NODES * 54) * 1000, 2),
    "Meta's RSC-1": 6.5,
    "bad weeks of OPT and BLOOM": 16.0,
}
HARDWARE_SHARE = 0.78  # of Llama 3's unexpected interruptions: those are taken to lose their node
DAYS = 28.0  # of Jukebox's top prior
NODES = (64, 128, 256, 512, 1000, 2000)
SPARES = (0, 1, 2, 4, 8, 16)
JUKEBOX_NODES = 64  # of the top prior
THOUSAND = 1000
QUEUES = {"10 minutes": 600.0, "an hour": 3600.0, "six hours": 6 * 3600.0}
CONFIDENCE_95 = 1.96  # standard errors on either side of a mean
COLOURS = ("#2060c0", "#d08020", "#b02040")
PARTS = ("trained", "lost", "saving", "restarting", "queueing")


@dataclass(frozen=True)
class FailingRun:
    """What is simulated. Durations in seconds."""

    nodes: int
    rate: float  # failures of 1000 nodes in a day
    days: float = DAYS
    save: float = 10.0  # for which a checkpoint stops training; `plan`'s assumption, as is the next
    restart: float = 900.0  # from a failure to the next step
    spares: int | None = None  # of each job; None: never too few
    queue: float = 0.0  # from giving up a job to the start of the next one
    job: float | None = None  # time limit of a job; None: none
    lost_share: float = HARDWARE_SHARE  # of failures after which their node is gone

    @property
    def between(self) -> float:
        """Mean seconds between two failures."""
        return DAY * 1000 / (self.rate * self.nodes)

    @property
    def by_plan(self) -> float:
        """Share of the time in training by the formula of `plan`."""
        return failures(self.nodes, self.days, self.rate, self.save, self.restart).ettr

    @property
    def interval(self) -> float:
        """Seconds of training between two checkpoints: `plan`'s advice."""
        return failures(self.nodes, self.days, self.rate, self.save, self.restart).interval

    @property
    def by_first_order(self) -> float:
        """The same as if at most one thing went wrong at a time: `plan`'s formula until decision 0036."""
        lost = self.save / self.interval + (self.interval / 2 + self.restart) / self.between
        return max(0.0, 1 - lost)


@dataclass
class TimeSpent:
    """Seconds of one simulated run by what they went into."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    failures: int = 0
    given_up: int = 0  # jobs that had too few nodes left

    @property
    def wall(self) -> float:
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        return self.seconds["trained"] / self.wall


def simulate(run: FailingRun, draw: np.random.Generator) -> TimeSpent:
    """One run of `run.days`, job after job."""
    spent = TimeSpent()
    while (left := run.days * DAY - spent.wall) > 0:
        simulate_job(run, min(left, run.job or left), draw, spent)
    return spent


def simulate_job(
    run: FailingRun, seconds: float, draw: np.random.Generator, spent: TimeSpent
) -> None:
    """A job that may last `seconds`: attempts, until its time is over or it has too few nodes.

    |restart|=====save=====save===x|restart|=====save ...      x a failure: what is behind the last save is lost
    """
    spares = math.inf if run.spares is None else run.spares
    left = seconds
    while left > 0:
        life = draw.exponential(run.between)
        if life >= left:
            add_attempt(run, left, spent, is_asked_to_stop=True)
            return
        add_attempt(run, life, spent, is_asked_to_stop=False)
        left -= life
        spent.failures += 1
        spares -= draw.random() < run.lost_share
        if spares < 0:
            spent.seconds["queueing"] += run.queue
            spent.given_up += 1
            return


def add_attempt(run: FailingRun, life: float, spent: TimeSpent, is_asked_to_stop: bool) -> None:
    """From its start to its end, `life` seconds later; one that is asked to stop saves what it has."""
    restarting = min(run.restart, life)
    training = life - restarting
    saves = int(training // (run.interval + run.save))
    rest = training - saves * (run.interval + run.save)  # after the last save
    kept = min(rest, run.interval) if is_asked_to_stop else 0.0
    spent.seconds["restarting"] += restarting
    spent.seconds["trained"] += saves * run.interval + kept
    spent.seconds["saving"] += saves * run.save + max(0.0, rest - run.interval)
    spent.seconds["lost"] += min(rest, run.interval) - kept


@dataclass(frozen=True)
class SimulatedGoodput:
    """The mean over many runs, with its 95 % interval."""

    mean: float
    half_width: float
    shares: dict[str, float]  # of the time, by PARTS
    failures: float  # of a run
    given_up: float  # jobs of a run

    def __str__(self) -> str:
        return f"{self.mean:.2%} ± {self.half_width:.2%}"


def goodput(run: FailingRun, runs: int, seed: int = 0) -> SimulatedGoodput:
    draw = np.random.default_rng(seed)
    spent = [simulate(run, draw) for _ in range(runs)]
    values = [one.goodput for one in spent]
    total = sum(one.wall for one in spent)
    shares = {part: sum(one.seconds[part] for one in spent) / total for part in PARTS}
    return SimulatedGoodput(
        mean=statistics.mean(values),
        half_width=CONFIDENCE_95 * statistics.stdev(values) / math.sqrt(runs),
        shares=shares,
        failures=statistics.mean(one.failures for one in spent),
        given_up=statistics.mean(one.given_up for one in spent),
    )


# ---- What is asked -------------------------------------------------------------------------------------------------


def by_size(runs: int) -> Iterator[dict[str, Any]]:
    """The formula's own question: every rate, numbers of nodes, a restart of 15 minutes and of one."""
    for restart in (900.0, 60.0):
        for source, rate in RATES.items():
            for nodes in NODES:
                run = FailingRun(nodes, rate, restart=restart)
                yield {"source": source} | row(run, runs)


def by_spares(runs: int) -> Iterator[dict[str, Any]]:
    """Jobs of a day at Llama 3's rate: how many spares, for what the queue takes."""
    rate = RATES["Llama 3"]
    for nodes, (name, queue), spares in product((JUKEBOX_NODES, THOUSAND), QUEUES.items(), SPARES):
        run = FailingRun(nodes, rate, spares=spares, queue=queue, restart=60.0, job=DAY)
        yield {"queue_name": name} | row(run, runs)


def row(run: FailingRun, runs: int) -> dict[str, Any]:
    simulated = goodput(run, runs)
    return asdict(run) | {
        "interval": run.interval,
        "by_plan": run.by_plan,
        "by_first_order": run.by_first_order,
        **asdict(simulated),
    }


def table(rows: list[dict[str, Any]], first: str) -> Table:
    columns = ("nodes", "restart", "spares", "failures", "plan", "first order", "simulated")
    shown = Table(first, *columns, *PARTS[1:])
    for r in rows:
        shown.add_row(
            str(r.get("source") or r["queue_name"]),
            str(r["nodes"]),
            f"{r['restart']:.0f} s",
            "any" if r["spares"] is None else str(r["spares"]),
            f"{r['failures']:.1f}",
            f"{r['by_plan']:.2%}",
            f"{r['by_first_order']:.2%}",
            f"{r['mean']:.2%} ± {r['half_width']:.2%}",
            *[f"{r['shares'][part]:.2%}" for part in PARTS[1:]],
        )
    return shown


def plot(sizes: list[dict[str, Any]], spares: list[dict[str, Any]]) -> None:
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot_sizes(left, sizes)
    plot_spares(right, spares)
    figure.savefig(PLOT, dpi=110)


def plot_sizes(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """The formula as lines, the simulation as points with their intervals."""
    for restart, style, marker in ((900.0, "-", "o"), (60.0, ":", "s")):
        for colour, source in zip(COLOURS, RATES):
            of_one = [r for r in rows if r["restart"] == restart and r["source"] == source]
            nodes = [r["nodes"] for r in of_one]
            axes.plot(nodes, [100 * r["by_plan"] for r in of_one], style, color=colour)
            first_order = [100 * r["by_first_order"] for r in of_one]
            axes.plot(nodes, first_order, "--", color=colour, alpha=0.3, lw=1)
            means = [100 * r["mean"] for r in of_one]
            bars = [100 * r["half_width"] for r in of_one]
            label = f"{RATES[source]:g} ({source})" if restart == 900 else None
            axes.errorbar(nodes, means, bars, fmt=marker, ms=4, color=colour, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(NODES, [str(count) for count in NODES])
    axes.set_xlabel("nodes of eight GPUs")
    axes.set_ylabel("time in training (%)")
    axes.set_title(
        "points: simulated, lines: plan's formula (pale: first order)\n"
        "restart in 15 min (—, ●), in 1 min (···, ■)"
    )
    axes.legend(title="failures per 1000 node-days", loc="lower left", fontsize=8)
    axes.grid(alpha=0.3)


def plot_spares(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for colour, name in zip(COLOURS, QUEUES):
        of_one = [r for r in rows if r["nodes"] == THOUSAND and r["queue_name"] == name]
        axes.errorbar(
            [r["spares"] for r in of_one],
            [100 * r["mean"] for r in of_one],
            [100 * r["half_width"] for r in of_one],
            fmt="o-",
            ms=4,
            color=colour,
            label=name,
        )
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set_xticks(SPARES, [str(count) for count in SPARES])
    axes.set_xlabel("spare nodes of a job")
    axes.set_ylabel("time in training (%)")
    axes.set_title("1000 nodes, Llama 3's rate, jobs of a day,\nrestart in 1 min")
    axes.legend(title="the queue takes", loc="lower right", fontsize=8)
    axes.grid(alpha=0.3)


def main(
    runs: Annotated[int, typer.Option(min=2, help="Simulated runs of 28 days a point.")] = 200,
) -> None:
    """Simulate, print, plot and keep it."""
    sizes = list(by_size(runs))
    spares = list(by_spares(runs))
    console = Console(width=150)
    console.print(table(sizes, "rate of"))
    console.print(table(spares, "queue"))
    plot(sizes, spares)
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": made_by()["commit"],
        "runs": runs,
        "rates": RATES,
        "by_size": sizes,
        "by_spares": spares,
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
