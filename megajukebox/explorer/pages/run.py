"""The page of one run: what is wrong, where time went, curves with what happened, samples, config and differences."""

import json
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

from megajukebox.common.redaction import redact
from megajukebox.explorer.loaders.runs import ListedRun, StepSample, is_number
from megajukebox.explorer.pages.html import Markup, element
from megajukebox.explorer.pages.layout import facts, page, problem_note
from megajukebox.explorer.pages.run_list import percent, status
from megajukebox.explorer.pages.scores import scores
from megajukebox.explorer.pages.svg_plots import Marks, figure, number
from megajukebox.explorer.pages.timeline import time_line
from megajukebox.monitoring.alerts import RUNBOOK, diagnose, format_bytes, format_duration
from megajukebox.monitoring.collect import step_breakdown
from megajukebox.monitoring.exporters.terminal import queued

MOST_EVENTS = 200
MOST_SAMPLES = 120
MARKED = ("resume", "rewind", "diverged", "hang", "skip_step", "save_failed", "alert", "stop")
FIRST = (
    "loss",
    "bits_per_code",
    "gradient_norm",
    "learning_rate",
)  # curves that are looked at first
LATER = ("time_", "skipped", "memory_")  # and those that stand last


def run_page(run: ListedRun, others: list[str], recordings: list[str]) -> str:
    """One run. `others` are the runs to compare its settings with, `recordings` the URLs of its samples."""
    heading = element("div", element("h1", run.name), status(run), class_="heading")
    about = element(
        "section",
        facts(summary(run)),
        problem_note(run.problems, "could not be read whole"),
        wrong(run),
        class_="panel",
        data_live=run.state.alive,
    )
    where = element(
        "section", element("h2", "Where its time went"), time_line(run.state), class_="panel"
    )
    scored, heard = scores(run.scores), samples(run.samples, recordings)
    parts = [about, where, heard, scored, curves(run), events(run.events), config(run, others)]
    return page(
        run.name, "Runs", "../", heading, *parts, scripts=("curves.js", "live.js", "differences.js")
    )


def summary(run: ListedRun) -> list[tuple[str, str | None]]:
    kind = " ".join(str(run.model[key]) for key in ("level", "kind") if run.model.get(key))
    fingerprint, state = run.model.get("fingerprint"), run.state
    whole = [checkpoint for checkpoint in state.checkpoints if checkpoint.whole]
    saved = (
        f"step {whole[-1].step:,}, {format_bytes(whole[-1].bytes)}, of {len(whole)}"
        if whole
        else None
    )
    return [
        ("model", kind),
        (
            "step",
            f"{run.last_step:,}" + (f" of {state.target:,}" if state.target else "")
            if run.curves
            else None,
        ),
        (
            "left",
            format_duration(state.eta_seconds)
            if state.eta_seconds is not None and state.alive
            else None,
        ),
        ("a step", step_breakdown.told(state)),
        ("job", f"{queued(state)} queued" if state.chain and state.alive else None),
        ("goodput", percent(state.account.goodput) or None),
        ("restarts", str(sum(state.restarts.values())) if state.restarts else None),
        ("newest checkpoint", saved),
        ("ranks", str(len(state.ranks)) if state.ranks else None),
        ("last event", str(run.events[-1].get("event", "")) if run.events else None),
        (
            "weights",
            element("code", f"{str(fingerprint)[:16]}…", title=str(fingerprint))
            if fingerprint
            else None,
        ),
        ("page of", moment(state.now) + " UTC"),
    ]


def wrong(run: ListedRun) -> Markup:
    """What is wrong and what to do; nothing where nothing is."""
    problems = diagnose(run.state)
    rows = [
        element(
            "li",
            element("b", problem.alert.removeprefix("Jukebox")),
            f" {redact(problem.what)}. ",
            element("span", f"{problem.do} ({RUNBOOK}#{problem.alert.lower()})", class_="small"),
            class_=problem.severity,
        )
        for problem in problems
    ]
    return element("ul", rows, class_="problems") if rows else Markup("")


def samples(found: list[StepSample], urls: list[str]) -> Markup:
    """Recordings by the step that they were made at, the newest first."""
    if not found:
        return Markup("")
    steps: dict[int, list[Markup]] = {}
    for sample, url in list(zip(found, urls))[:MOST_SAMPLES]:
        listen = element(
            "audio", controls=True, preload="none", src=url, aria_label=f"{sample.path.stem}"
        )
        steps.setdefault(sample.step, []).append(
            element("div", element("span", sample.path.stem), listen)
        )
    rows = [
        element("div", element("h3", f"step {step:,}"), heard, class_="heard")
        for step, heard in steps.items()
    ]
    more = len(found) - MOST_SAMPLES
    rest = (
        element("p", f"and {more} older recordings in its folder samples/", class_="small")
        if more > 0
        else ""
    )
    return element("section", element("h2", "Along training"), rows, rest, class_="panel")


def curves(run: ListedRun) -> Markup:
    names = sorted(run.curves, key=lambda name: (place(name), name if place(name) else ""))
    figures = [figure(name, run.curves[name], marks(run.events)) for name in names]
    drawn = (
        element("div", figures, class_="curves")
        if figures
        else element("p", "No metrics yet.", class_="small")
    )
    legend = element(
        "p", "Lines across: ", ", ".join(MARKED), ". Point at one to read it.", class_="small"
    )
    return element(
        "section", element("h2", "Curves"), legend if figures else "", drawn, class_="panel"
    )


def place(name: str) -> int:
    return 0 if name in FIRST else 2 if name.startswith(LATER) else 1


def marks(rows: list[dict[str, Any]]) -> Marks:
    """What happened, by step; at most the last hundred."""
    told = [row for row in rows if row.get("event") in MARKED and is_number(row.get("step"))]
    return [
        (
            row["step"],
            str(row["event"]),
            f"{row['event']} at step {number(row['step'])}: {rest(row)}",
        )
        for row in told[-100:]
    ]


def events(rows: list[dict[str, Any]]) -> Markup:
    """Newest first: what happened last is what one looks for."""
    if not rows:
        return Markup("")
    shown = rows[: -MOST_EVENTS - 1 : -1]
    head = element(
        "tr",
        [element("th", name, scope="col") for name in ("Time (UTC)", "Event", "Step", "Details")],
    )
    body = [
        cells(
            (
                moment(row.get("time")),
                str(row.get("event", "")),
                str(row.get("step", "")),
                rest(row),
            )
        )
        for row in shown
    ]
    table = element("table", element("thead", head), element("tbody", body))
    name = (
        f"Events ({len(rows)})"
        if len(rows) == len(shown)
        else f"Events (the last {len(shown)} of {len(rows)})"
    )
    scroll = element(
        "div", table, class_="scroll", tabindex="0", role="region", aria_label="Events"
    )
    return element("section", details(name, scroll), class_="panel")


def config(run: ListedRun, others: list[str]) -> Markup:
    """run.yaml, and a choice of another run to see what differs."""
    if not run.config:
        return Markup("")
    options = [
        element("option", "choose a run", value=""),
        *(element("option", name, value=name) for name in others),
    ]
    choose = element("label", "Differences to ", element("select", options, id="other"))
    table = element(
        "div", id="differences", class_="scroll", hidden=True, data_run=run.name, tabindex="0"
    )
    text = details("Config (run.yaml)", element("pre", redact(run.config)))
    return element(
        "section",
        element("h2", "Config"),
        choose if others else "",
        table,
        text,
        class_="panel config",
    )


def cells(values: Iterable[str]) -> Markup:
    return element("tr", [element("td", value) for value in values])


def rest(row: dict[str, Any]) -> str:
    return redact(
        ", ".join(
            f"{key}: {plain(row[key])}" for key in row if key not in ("time", "event", "step")
        )
    )


def plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def details(name: str, *content: Markup) -> Markup:
    return element("details", element("summary", name), *content)


def moment(unix_seconds: object) -> str:
    """Date and time of day in UTC; what is not a time is shown as it is."""
    if not is_number(unix_seconds) or not 0 <= unix_seconds < 2**35:  # type: ignore[operator]
        return "" if unix_seconds is None else str(unix_seconds)
    return datetime.fromtimestamp(unix_seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")  # type: ignore[arg-type]
