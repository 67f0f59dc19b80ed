"""The page of one run: what is wrong, where time went, curves with what happened, samples, config and differences."""

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from megajukebox.common.redaction import redact
from megajukebox.explorer.loaders.runs import ListedRun, is_number
from megajukebox.explorer.pages.layout import abbreviated, render_page
from megajukebox.explorer.pages.run_list import percent, time_left
from megajukebox.explorer.pages.scores import score_table
from megajukebox.explorer.pages.svg_plots import Mark, figure, number
from megajukebox.explorer.pages.timeline import timeline
from megajukebox.monitoring.alerts import RUNBOOK, diagnose, format_bytes
from megajukebox.monitoring.collect import step_breakdown
from megajukebox.monitoring.exporters.terminal import queued

MAX_EVENTS = 200
MAX_PREVIEWS = 120
MAX_MARKS = 100  # on each curve
MARKED_EVENTS = (
    "resume",
    "rewind",
    "diverged",
    "hang",
    "step_skipped",
    "save_failed",
    "alert",
    "stop",
)
FIRST_CURVES = ("loss", "bits_per_code", "grad_norm", "learning_rate")
LAST_CURVES = ("time_", "bad_samples", "memory_")  # by the beginnings of their names
LATEST_TIME = 2**35  # unix seconds, the year 3058: larger numbers are no times


@dataclass(frozen=True)
class ShownAlert:
    """What is wrong with the run and what to do about it."""

    severity: str
    name: str
    what: str
    do: str


@dataclass(frozen=True)
class EventTable:
    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, str, str, str]]


def run_page(run: ListedRun, others: list[str], recordings: list[str]) -> str:
    """One run. `others` are the runs to compare its settings with, `recordings` the URLs of its samples."""
    marks = event_marks(run.events)
    figures = []
    for name in sorted(run.curves, key=curve_order):
        figures.append(figure(name, run.curves[name], marks))
    # By step, the newest first: name and URL of each recording.
    previews: dict[str, list[tuple[str, str]]] = {}
    for preview, url in list(zip(run.previews, recordings))[:MAX_PREVIEWS]:
        previews.setdefault(f"{preview.step:,}", []).append((preview.path.stem, url))
    return render_page(
        "run.html",
        run.name,
        tab="Runs",
        root="../",
        scripts=("curves.js", "live.js", "differences.js"),
        status=run.state.status,
        live=run.state.alive,
        summary=summary(run),
        problems=run.problems,
        alerts=shown_alerts(run),
        timeline=timeline(run.state),
        previews=previews,
        older_previews=len(run.previews) - MAX_PREVIEWS,
        scores=score_table(run.scores),
        marked_events=", ".join(MARKED_EVENTS),
        figures=figures,
        events=event_table(run.events),
        config=redact(run.config),
        others=others,
    )


def summary(run: ListedRun) -> list[tuple[str, str | None]]:
    """Where the run stands, as names with values; None where something is not known."""
    state = run.state
    kind = [run.model.get("level"), run.model.get("kind")]
    last_step = 0.0
    for splits in run.curves.values():
        last_step = max(last_step, *(points[-1][0] for points in splits.values()))
    of_target = f" of {state.target:,}" if state.target else ""
    fingerprint = run.model.get("fingerprint")
    whole = state.whole_checkpoints
    newest = None
    if whole:
        size = format_bytes(whole[-1].bytes)
        newest = f"step {whole[-1].step:,}, {size}, of {len(whole)}"
    return [
        ("model", " ".join(map(str, filter(None, kind)))),
        ("step", f"{int(last_step):,}{of_target}" if run.curves else None),
        ("time left", time_left(run)),
        ("a step", step_breakdown.describe_step(state)),
        ("job", f"{queued(state)} queued" if state.chain and state.alive else None),
        ("goodput", percent(state.account.goodput)),
        ("restarts", str(sum(state.restarts.values())) if state.restarts else None),
        ("newest checkpoint", newest),
        ("ranks", str(len(state.ranks)) if state.ranks else None),
        ("last event", str(run.events[-1].get("event", "")) if run.events else None),
        ("weights", abbreviated(str(fingerprint)) if fingerprint else None),
        ("as of", moment(state.now) + " UTC"),
    ]


def shown_alerts(run: ListedRun) -> list[ShownAlert]:
    alerts = []
    for alert in diagnose(run.state):
        name = alert.alert.removeprefix("Jukebox")
        do = f"{alert.do} ({RUNBOOK}#{alert.alert.lower()})"
        alerts.append(ShownAlert(alert.severity, name, redact(alert.what), do))
    return alerts


def curve_order(name: str) -> tuple[int, str]:
    """Sort the curves that are read first to the front, in the order of the log; the others by name."""
    if name in FIRST_CURVES:
        return 0, ""
    return (2 if name.startswith(LAST_CURVES) else 1), name


def event_marks(events: list[dict[str, Any]]) -> list[Mark]:
    """What happened, by step; at most the last hundred."""
    marks = []
    for event in events:
        name = event.get("event")
        if name in MARKED_EVENTS and is_number(event.get("step")):
            text = f"{name} at step {number(event['step'])}: {details(event)}"
            marks.append(Mark(event["step"], str(name), text))
    return marks[-MAX_MARKS:]


def event_table(events: list[dict[str, Any]]) -> EventTable | None:
    """The newest first: what happened last is what one looks for."""
    if not events:
        return None
    shown = events[: -MAX_EVENTS - 1 : -1]
    rows = []
    for event in shown:
        name = str(event.get("event", ""))
        step = str(event.get("step", ""))
        rows.append((moment(event.get("time")), name, step, details(event)))
    count = f"the last {len(shown)} of {len(events)}" if len(shown) < len(events) else len(events)
    return EventTable(f"Events ({count})", ("Time (UTC)", "Event", "Step", "Details"), rows)


def details(event: dict[str, Any]) -> str:
    """All fields of an event but those that have a column of their own, without secrets."""
    parts = []
    for key, value in event.items():
        if key not in ("schema", "time", "event", "step") and value not in (None, ""):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            parts.append(f"{key}: {text}")
    return redact(", ".join(parts))


def moment(unix_seconds: object) -> str:
    """Date and time of day in UTC; what is not a time is shown as it is."""
    if not is_number(unix_seconds) or not 0 <= unix_seconds < LATEST_TIME:  # type: ignore[operator]
        return "" if unix_seconds is None else str(unix_seconds)
    time = datetime.fromtimestamp(unix_seconds, timezone.utc)  # type: ignore[arg-type]
    return time.strftime("%Y-%m-%d %H:%M:%S")
