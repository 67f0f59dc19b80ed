"""The one screen: a row for every run, in the order of the questions at night, then what is wrong and what to do."""

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from megajukebox.common.plain_text import plain
from megajukebox.monitoring.alerts import (
    PAGE,
    RUNBOOK,
    ActiveAlert,
    diagnose,
    format_bytes,
    format_duration,
)
from megajukebox.monitoring.collect.run_state import RunState
from megajukebox.monitoring.collect.step_breakdown import step_parts
from megajukebox.monitoring.collect.unreadable import views_of
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
BLOCKS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 12
MAX_EVENTS = 6
MAX_EVENT_TEXT = 300  # characters
NOT_SHOWN = (BadSampleSkipped, CheckpointSaved, AlertRaised)  # events that are no news
MAX_TIME = 2**35  # unix seconds, the year 3058: larger numbers are no times


def screen(runs: Sequence[RunState], now: float, width: int = 200) -> RenderableType:
    """All of it, for a terminal of `width` columns. A name or a reason that looks like markup stays what it is."""
    columns = [column for column in COLUMNS if width >= column.min_width]
    rows = views_of(runs, partial(run_row, columns=columns))
    alerts: list[ActiveAlert] = []
    for _, row in rows:
        alerts += row.alerts
    parts: list[RenderableType] = [headline(runs, alerts, now), table(rows, columns)]
    if alerts:
        parts += [Text(), advice(alerts)]
    events = latest([run for run, _ in rows])
    if events:
        parts += [Text("\nLately", style="bold"), *events]
    return Group(*parts)


def headline(runs: Sequence[RunState], alerts: Sequence[ActiveAlert], now: float) -> Text:
    pages = sum(alert.severity == PAGE for alert in alerts)
    if alerts:
        verdict = f"{pages} to act on now, {len(alerts) - pages} for the morning"
        color = "bold red" if pages else "yellow"
    elif runs:
        verdict = "nothing is wrong"
        color = "green"
    else:
        verdict = "no run is here: is the path right?"
        color = "yellow"
    head = Text(f"{clock(now)} UTC   {len(runs)} run{'s' * (len(runs) != 1)}   ")
    return head.append(verdict, style=color)


class ShownRun(NamedTuple):
    """A row of the screen, and what is wrong with its run."""

    name: str
    status: str
    cells: list[str]
    alerts: list[ActiveAlert]


def run_row(run: RunState, columns: Sequence["Column"]) -> ShownRun:
    cells = [column.cell(run) for column in columns]
    return ShownRun(plain(run.name), run.status, cells, diagnose(run))


def table(rows: Sequence[tuple[RunState, ShownRun]], columns: Sequence["Column"]) -> Table:
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    shown.add_column("run", overflow="fold", min_width=8)
    shown.add_column("status", no_wrap=True)
    for column in columns:
        shown.add_column(column.name, no_wrap=True)
    for _, row in rows:
        status = Text(row.status, style=COLORS.get(row.status, "bold red"))
        shown.add_row(Text(row.name), status, *map(Text, row.cells))
    return shown


def progress(run: RunState) -> str:
    if not run.target:
        return f"{run.step:,}"
    return f"{run.step:,}/{run.target:,} {run.step / run.target:.0%}"


def time_left(run: RunState) -> str:
    return format_duration(run.eta_seconds) if run.eta_seconds is not None and run.alive else "-"


def queued(run: RunState) -> str:
    """Time left of the job, and the jobs queued after it."""
    if run.chain is None or not run.alive:
        return "-"
    left = run.chain.job_seconds_left(run.now)
    time = "no limit" if left is None else format_duration(left)
    return f"{time} +{run.chain.queued}"


def speed(run: RunState) -> str:
    tokens = run.value("tokens_per_second")
    if tokens is not None:
        return f"{tokens:,.0f} tok/s"
    audio = run.value("audio_seconds_per_second")
    return "-" if audio is None else f"{audio:,.1f} s/s"


def last_checkpoint(run: RunState) -> str:
    if not run.whole_checkpoints:
        return "never"
    return f"{format_duration(run.now - run.whole_checkpoints[-1].time)} ago"


def slowest(run: RunState) -> str:
    """The slowest rank and its slowdown; before any is known, the number of ranks."""
    slow = run.slowdowns
    if not slow:
        return f"{len(run.ranks)} ranks" if run.ranks else "-"
    worst = max(slow, key=lambda rank: slow[rank])
    return f"rank {worst} x{slow[worst]:.2f}"


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def communication(run: RunState) -> str:
    """Share of the last logged step that rank 0 spent in collectives."""
    spent = run.value("communication_seconds")
    seconds = run.value("step_seconds")
    return share(spent / seconds if spent is not None and seconds else None)


def loss(run: RunState) -> str:
    value = run.value("loss")
    return "-" if value is None else f"{value:.4g}"


def sparkline(values: Sequence[float], width: int = SPARKLINE_WIDTH) -> str:
    """The last values as blocks."""
    size = max(1, len(values) // width)
    starts = range(0, len(values) - size + 1, size)
    means = [sum(values[start : start + size]) / size for start in starts][-width:]
    low = min(means, default=0.0)
    high = max(means, default=0.0)
    if high <= low:
        return BLOCKS[0] * len(means)
    return "".join(BLOCKS[int((mean - low) / (high - low) * 7.99)] for mean in means)


class Column(NamedTuple):
    name: str
    cell: Callable[[RunState], str]
    min_width: int  # columns that a terminal must have for it to be shown


COLUMNS = (
    Column("step", progress, 0),
    Column("left", time_left, 0),
    Column("loss", loss, 0),
    Column("", lambda run: sparkline(run.lately("loss")), 150),
    Column("speed", speed, 110),
    Column("data", lambda run: share(run.data_wait_ratio), 120),
    Column("comm", communication, 145),
    Column("goodput", lambda run: share(run.account.goodput), 90),
    Column("saved", last_checkpoint, 70),
    Column("slowest", slowest, 130),
    Column("job", queued, 165),
    Column("restarts", lambda run: str(sum(run.restarts.values())), 140),
    Column("disk", lambda run: format_bytes(run.disk.free_bytes or 0), 160),
)


def advice(alerts: Sequence[ActiveAlert]) -> RenderableType:
    rows = Table(box=None, pad_edge=False, padding=(1, 2, 0, 0), show_header=False)
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    for alert in alerts:
        text = Text(f"{plain(alert.run)}: {plain(alert.what)}\n")
        text.append("do: ", style="dim").append(alert.do)
        text.append(f"  ({RUNBOOK}#{alert.alert.lower()})", style="dim")
        style = "bold red" if alert.severity == PAGE else "yellow"
        rows.add_row(Text(alert.alert.removeprefix("Jukebox"), style=style), text)
    return rows


def latest(runs: Sequence[RunState]) -> list[Text]:
    """The last events of all runs, the newest first."""
    dated: list[tuple[Event, str]] = []
    for run in runs:
        dated += [(e, run.name) for e in run.events if e.time and not isinstance(e, NOT_SHOWN)]
    dated.sort(key=lambda pair: -pair[0].time)
    lines = []
    for event, run_name in dated[:MAX_EVENTS]:
        step = "" if event.step is None else f" at step {event.step}"
        reason = f": {event.reason}" if event.reason else ""
        name = event.event if isinstance(event, UnknownEvent) else event.name
        line = plain(f"{clock(event.time)}  {run_name}: {name}{step}{reason}")
        lines.append(Text(line[:MAX_EVENT_TEXT]))
    return lines


def clock(time: float) -> str:
    if not 0 <= time < MAX_TIME:
        return "?"
    return datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def as_json(runs: Sequence[RunState]) -> list[dict[str, Any]]:
    """What the screen shows of each run, for other programs: plain data in seconds, steps and ratios."""
    return [record for _, record in views_of(runs, run_record)]


def run_record(run: RunState) -> dict[str, Any]:
    problems = []
    for alert in diagnose(run):
        problem = {
            "alert": alert.alert,
            "severity": alert.severity,
            "what": plain(alert.what),
            "do": alert.do,
        }
        problems.append(problem)
    return {
        "run": plain(run.name),
        "stage": run.stage,
        "status": run.status,
        "step": run.step,
        "target": run.target,
        "eta_seconds": run.eta_seconds,
        "loss": run.value("loss"),
        "goodput": run.account.goodput,
        "chain_queued": run.chain.queued if run.chain else None,
        "chain_seconds": run.chain_seconds_left,
        "seconds": run.account.seconds,
        "step_parts": step_parts(run),
        "restarts": sum(run.restarts.values()),
        "last_checkpoint": run.checkpoints[-1].step if run.checkpoints else None,
        "slowdowns": {str(rank): ratio for rank, ratio in run.slowdowns.items()},
        "problems": problems,
    }
