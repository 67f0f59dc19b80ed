"""The one screen: a row for every run, in the order of the questions at night, then what is wrong and what to do."""

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from megajukebox.common.redaction import redact
from megajukebox.monitoring.alerts import (
    RUNBOOK,
    ActiveAlert,
    diagnose,
    format_bytes,
    format_duration,
)
from megajukebox.monitoring.collect.run_state import RunState
from megajukebox.monitoring.collect.step_breakdown import step_parts
from megajukebox.records.events import (
    AlertRaised,
    BadSampleSkipped,
    CheckpointSaved,
    Event,
    UnknownEvent,
)

COLORS = {
    "training": "green",
    "done": "dim",
    "stopped": "dim",
    "starting": "cyan",
    "new": "cyan",
    "waiting": "yellow",
}
SPARKS = "▁▂▃▄▅▆▇█"
SHOWN_EVENTS = 6
QUIET = (BadSampleSkipped, CheckpointSaved, AlertRaised)  # events that are no news on one screen


def screen(runs: Sequence[RunState], now: float, width: int = 200) -> RenderableType:
    """All of it, for a terminal of `width` columns. A name or a reason that looks like markup stays what it is."""
    problems = [problem for run in runs for problem in diagnose(run)]
    pages = sum(problem.severity == "page" for problem in problems)
    head = Text(f"{clock(now)} UTC   {len(runs)} run{'s' * (len(runs) != 1)}   ")
    well = "nothing is wrong" if runs else "no run is here: is the path right?"
    head.append(
        f"{pages} to act on now, {len(problems) - pages} for the morning" if problems else well
    )
    color = "bold red" if pages else "yellow" if problems or not runs else "green"
    head.stylize(color, len(head) - len(head.plain.split("   ")[-1]))
    parts: list[RenderableType] = [head, table(runs, width)]
    if problems:
        parts += [Text(), advice(problems)]
    happened = latest(runs)
    if happened:
        parts += [Text("\nLately", style="bold"), *happened]
    return Group(*parts)


def table(runs: Sequence[RunState], width: int) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    made.add_column("run", overflow="fold", min_width=8)
    made.add_column("status", no_wrap=True)
    shown = {name: cell for name, (cell, least) in COLUMNS.items() if width >= least}
    for name in shown:
        made.add_column(name, no_wrap=True)
    for run in runs:
        status = Text(run.status, style=COLORS.get(run.status, "bold red"))
        made.add_row(Text(plain(run.name)), status, *(Text(cell(run)) for cell in shown.values()))
    return made


def progress(run: RunState) -> str:
    return (
        f"{run.step:,}/{run.target:,} {run.step / run.target:.0%}"
        if run.target
        else f"{run.step:,}"
    )


def left(run: RunState) -> str:
    return format_duration(run.eta_seconds) if run.eta_seconds is not None and run.alive else "-"


def queued(run: RunState) -> str:
    """Time left of the job, and the jobs queued after it."""
    if run.chain is None or not run.alive:
        return "-"
    time_left = run.chain.job_seconds_left(run.now)
    return (
        f"{format_duration(time_left) if time_left is not None else 'no limit'} +{run.chain.queued}"
    )


def speed(run: RunState) -> str:
    rate = run.value("tokens_per_second")
    if rate is not None:
        return f"{rate:,.0f} tok/s"
    rate = run.value("audio_seconds_per_second")
    return f"{rate:,.1f} s/s" if rate is not None else "-"


def saved(run: RunState) -> str:
    whole = [checkpoint for checkpoint in run.checkpoints if checkpoint.whole]
    return f"{format_duration(run.now - whole[-1].time)} ago" if whole else "never"


def slowest(run: RunState) -> str:
    slow = run.slowdowns
    if not slow:
        return f"{len(run.ranks)} ranks" if run.ranks else "-"
    worst = max(slow, key=lambda rank: slow[rank])
    return f"rank {worst} x{slow[worst]:.2f}"


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def communication(run: RunState) -> str:
    """Share of the last logged step that rank 0 spent in collectives."""
    spent, seconds = run.value("communication_seconds"), run.value("step_seconds")
    return share(spent / seconds if spent is not None and seconds else None)


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def sparkline(values: Sequence[float], width: int = 12) -> str:
    """The last values as blocks."""
    size = max(1, len(values) // width)
    means = [sum(values[n : n + size]) / size for n in range(0, len(values) - size + 1, size)][
        -width:
    ]
    low, high = min(means, default=0.0), max(means, default=0.0)
    return "".join(
        SPARKS[int((v - low) / (high - low) * 7.99)] if high > low else SPARKS[0] for v in means
    )


# column -> its cell, and how many columns a terminal must have for it to be shown
COLUMNS: dict[str, tuple[Callable[[RunState], str], int]] = {
    "step": (progress, 0),
    "left": (left, 0),
    "loss": (lambda run: figure(run.value("loss")), 0),
    "": (lambda run: sparkline(run.lately("loss")), 150),
    "speed": (speed, 110),
    "data": (lambda run: share(run.data_wait_ratio), 120),
    "comm": (communication, 145),
    "goodput": (lambda run: share(run.account.goodput), 90),
    "saved": (saved, 70),
    "slowest": (slowest, 130),
    "job": (queued, 165),
    "restarts": (lambda run: str(sum(run.restarts.values())), 140),
    "disk": (lambda run: format_bytes(run.disk.free_bytes or 0), 160),
}


def advice(problems: Sequence[ActiveAlert]) -> RenderableType:
    made = Table(box=None, pad_edge=False, padding=(1, 2, 0, 0), show_header=False)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for problem in problems:
        style = "bold red" if problem.severity == "page" else "yellow"
        told = Text(f"{plain(problem.run)}: {plain(problem.what)}\n")
        told.append("do: ", style="dim").append(problem.do)
        told.append(f"  ({RUNBOOK}#{problem.alert.lower()})", style="dim")
        made.add_row(Text(problem.alert.removeprefix("Jukebox"), style=style), told)
    return made


def latest(runs: Sequence[RunState]) -> list[Text]:
    """The last events of all runs, the newest first."""
    dated: list[tuple[Event, str]] = []
    for run in runs:
        dated += [(e, run.name) for e in run.events if e.time and not isinstance(e, QUIET)]
    dated.sort(key=lambda pair: -pair[0].time)
    return [event_line(event, name) for event, name in dated[:SHOWN_EVENTS]]


def event_line(event: Event, run: str) -> Text:
    step = "" if event.step is None else f" at step {event.step}"
    reason = f": {event.reason}" if event.reason else ""
    name = event.event if isinstance(event, UnknownEvent) else event.name
    return Text(plain(f"{clock(event.time)}  {run}: {name}{step}{reason}")[:300])


def clock(when: float) -> str:
    if not 0 <= when < 2**35:
        return "?"
    return datetime.fromtimestamp(when, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def plain(text: str) -> str:
    """On one line, without what a terminal would obey: a run's name or a reason may come from anybody."""
    clean = "".join(sign if sign.isprintable() else "?" for sign in redact(text))
    return clean.encode("utf-8", "replace").decode()


def as_json(runs: Sequence[RunState]) -> list[dict[str, Any]]:
    """What the screen shows, for other programs."""
    return [
        {
            "run": plain(run.name), "stage": run.stage, "status": run.status, "step": run.step, "target": run.target,
            "eta_seconds": run.eta_seconds, "loss": run.value("loss"), "goodput": run.account.goodput,
            "chain_queued": run.chain.queued if run.chain else None, "chain_seconds": run.chain_seconds_left,
            "seconds": run.account.seconds, "step_parts": step_parts(run), "restarts": sum(run.restarts.values()),
            "last_checkpoint": run.checkpoints[-1].step if run.checkpoints else None,
            "slowdowns": {str(rank): ratio for rank, ratio in run.slowdowns.items()},
            "problems": [
                {"alert": p.alert, "severity": p.severity, "what": plain(p.what), "do": p.do} for p in diagnose(run)
            ],
        }
        for run in runs
    ]  # fmt: skip
