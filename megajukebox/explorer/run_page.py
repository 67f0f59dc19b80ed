"""The page of runs: training curves, events and configs."""

import json
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

from megajukebox.explorer.curves import figure
from megajukebox.explorer.markup import Markup, element
from megajukebox.explorer.page import copyable, facts, page, problem_note
from megajukebox.explorer.run_records import Run, is_number

MOST_EVENTS = 200
HOW_TO_TRAIN = "megajukebox train --help\nmegajukebox explore samples runs"


def runs_page(runs: list[Run]) -> str:
    """All runs on one page, in the order in which they were started."""
    heading = element(
        "div",
        element("h1", "Runs"),
        element("p", f"{len(runs)} run{'s' * (len(runs) > 1)}" if runs else ""),
        class_="heading",
    )
    if not runs:
        say = element("p", "No run folder was given, or none was found in it. Train one, then build this page again:")
        return page(
            "Runs", "Runs", "", heading, element("section", say, copyable(HOW_TO_TRAIN, "commands"), class_="panel")
        )
    names = [element("a", run.name, href=f"#run-{n}") for n, run in enumerate(runs, start=1)]
    contents = element("nav", names, class_="contents", aria_label="Runs")
    sections = [section(run, f"run-{n}") for n, run in enumerate(runs, start=1)]
    return page("Runs", "Runs", "", heading, contents, *sections, scripts=("curves.js",))


def section(run: Run, identity: str) -> Markup:
    figures = [figure(name, splits) for name, splits in run.curves.items()]
    curves = element("div", figures, class_="curves") if figures else element("p", "No metrics yet.", class_="small")
    return element(
        "section",
        element("h2", run.name),
        facts(summary(run)),
        problem_note(run.problems, "could not be read whole"),
        curves,
        events(run.events),
        details("Config (run.yaml)", element("pre", run.config)) if run.config else "",
        class_="panel run",
        id=identity,
    )


def summary(run: Run) -> list[tuple[str, str | None]]:
    kind = " ".join(str(run.model[key]) for key in ("level", "kind") if run.model.get(key))
    fingerprint = run.model.get("fingerprint")
    return [
        ("model", kind),
        ("last step", f"{run.last_step:,}" if run.curves else None),
        ("time", duration(run.seconds) if run.seconds else None),
        ("checkpoints", str(run.checkpoints) if run.checkpoints else None),
        ("last event", str(run.events[-1].get("event", "")) if run.events else None),
        ("weights", element("code", f"{str(fingerprint)[:16]}…", title=str(fingerprint)) if fingerprint else None),
    ]


def events(rows: list[dict[str, Any]]) -> Markup:
    """Newest first: what happened last is what one looks for."""
    if not rows:
        return Markup("")
    shown = rows[: -MOST_EVENTS - 1 : -1]
    head = element("tr", [element("th", name, scope="col") for name in ("Time (UTC)", "Event", "Step", "Details")])
    body = [
        cells((moment(row.get("time")), str(row.get("event", "")), str(row.get("step", "")), rest(row)))
        for row in shown
    ]
    table = element("table", element("thead", head), element("tbody", body))
    name = f"Events ({len(rows)})" if len(rows) == len(shown) else f"Events (the last {len(shown)} of {len(rows)})"
    return details(name, element("div", table, class_="scroll", tabindex="0", role="region", aria_label="Events"))


def cells(values: Iterable[str]) -> Markup:
    return element("tr", [element("td", value) for value in values])


def rest(row: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {plain(row[key])}" for key in row if key not in ("time", "event", "step"))


def plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def details(name: str, *content: Markup) -> Markup:
    return element("details", element("summary", name), *content)


def moment(unix_seconds: object) -> str:
    """Date and time of day in UTC; what is not a time is shown as it is."""
    if not is_number(unix_seconds) or not 0 <= unix_seconds < 2**35:  # type: ignore[operator]
        return "" if unix_seconds is None else str(unix_seconds)
    return datetime.fromtimestamp(unix_seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")  # type: ignore[arg-type]


def duration(seconds: float) -> str:
    """4000 -> 1 h 06 min"""
    minutes, rest_of_minute = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest_of_minute:02d} s" if minutes else f"{rest_of_minute} s"
