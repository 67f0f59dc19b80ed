"""A report as a page: plots, then every metric with its interval, then the slices. Opens from disk, no scripts."""

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import megajukebox.explorer
from megajukebox import __version__
from megajukebox.common.files import make_folder, write_atomic
from megajukebox.evaluation.reporting.plots import THEMES, Plot, plots_of, svg
from megajukebox.evaluation.reporting.table import (
    ARROWS,
    column_words,
    format_value,
    grid_of,
    metric_words,
)
from megajukebox.explorer.pages.html import Markup, element

STYLE = Path(megajukebox.explorer.__file__).parent / "static" / "style.css"
MORE_STYLE = """
figure { margin: 0 0 1.2rem; } figure img { display: block; width: 100%; max-width: 760px; }
figcaption { font-weight: 600; font-size: 1rem; margin-bottom: .3rem; }
.wide { overflow-x: auto; } .wide table { width: auto; min-width: 60%; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th.number { text-align: right; } .way { color: var(--soft); margin-right: .4rem; }
.ends { color: var(--soft); display: block; font-size: .9em; }
.panel > h2 { margin-bottom: .6rem; }
.wide th[scope=row] { left: 0; z-index: 1; }
@media (max-width: 720px) {
  figure div { overflow-x: auto; } figure img { width: 620px; max-width: none; }
  .wide th[scope=row] { white-space: normal; min-width: 8rem; max-width: 8rem; }
  .wide th, .wide td { padding: .3rem .4rem; }
}
"""
BETTER = {1: "more is better", -1: "less is better", 0: "neither is better"}
MAX_UNREADABLE = 20  # songs that could not be read, listed with the reason

Cells = Mapping[str, Mapping[str, Any]]  # {column: metric}


def write_page(out: Path, report: Mapping[str, Any]) -> Path:
    """Write index.html and its plots into the folder `out`; returns the page's path."""
    plots = plots_of(report)
    make_folder(out / "plots")
    for plot in plots:
        for theme in THEMES:
            picture = svg(plot.draw, theme, plot.height)
            write_atomic(out / "plots" / f"{plot.name}.{theme}.svg", picture)
    write_atomic(out / "index.html", page(report, plots).encode())
    return out / "index.html"


def page(report: Mapping[str, Any], plots: list[Plot]) -> str:
    """The whole page: what was evaluated, notes, plots, a table for each part, slices."""
    title = f"Evaluation of {Path(report['target']['path']).name}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{title} · megajukebox"),
        element("link", rel="icon", href="data:,"),
        element("style", Markup(STYLE.read_text() + MORE_STYLE)),
    )
    evaluated_at = datetime.fromtimestamp(report["time"], timezone.utc)
    heading = element(
        "div",
        element("h1", title),
        element("p", evaluated_at.strftime("%Y-%m-%d %H:%M UTC")),
        class_="heading",
    )
    plots_panel: Markup | str = ""
    if plots:
        plots_panel = element(
            "section", element("h2", "Plots"), map(picture_of, plots), class_="panel"
        )
    parts = []
    for name, columns, rows in grid_of(report["metrics"]):
        parts.append(part_of(name, columns, rows))
    main = element(
        "main",
        heading,
        notes_of(report),
        element("section", facts_of(report), class_="panel"),
        plots_panel,
        parts,
        slices_of(report["metrics"]),
    )
    footer = (
        f"Made by megajukebox {__version__}. Intervals hold 95 %;"
        " docs/evaluation.md defines every metric."
    )
    body = element(
        "body",
        element("header", element("span", "megajukebox", class_="brand"), class_="site"),
        main,
        element("footer", footer),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def facts_of(report: Mapping[str, Any]) -> Markup:
    """What was evaluated, against what, and with what."""
    target = report["target"]
    weights = target["weights"] if isinstance(target["weights"], list) else [target["weights"]]
    rows = [
        ("evaluated", f"{target['kind']}, {target['path']}"),
        ("step", None if target["step"] is None else f"{target['step']:,}"),
        ("weights", ", ".join(fingerprint[:12] for fingerprint in weights)),
    ]
    for reference in report["references"]:
        source = f"{reference['source']} ({reference['fingerprint'][:12]})"
        rows.append((f"against {reference['kind']}", source))
    unreadable = len(report["refused"])
    rows.append(("songs evaluated", str(len(report["songs"]))))
    rows.append(("embedding", report["settings"].get("embedder")))
    rows.append(("left out", f"{unreadable} that cannot be read" if unreadable else None))
    pairs = []
    for name, value in rows:
        if value:
            pairs.append(element("div", element("dt", name), element("dd", value)))
    return element("dl", pairs, class_="facts")


def notes_of(report: Mapping[str, Any]) -> Markup:
    """What could not be done, and the first songs that could not be read."""
    items = []
    for note in report["notes"]:
        items.append(element("li", note))
    for key, reason in list(report["refused"].items())[:MAX_UNREADABLE]:
        items.append(element("li", f"{key}: {reason}"))
    if not items:
        return Markup("")
    return element("aside", element("ul", items), class_="note")


def picture_of(plot: Plot) -> Markup:
    """The light or the dark drawing, as the reader's system has it. The tables give the same in numbers."""
    dark = element(
        "source",
        srcset=f"plots/{plot.name}.dark.svg",
        media="(prefers-color-scheme: dark)",
    )
    light = element(
        "img",
        src=f"plots/{plot.name}.light.svg",
        alt=f"{plot.title} (the numbers are in the tables below)",
        loading="lazy",
    )
    return element(
        "figure",
        element("figcaption", plot.title),
        element(
            "div",  # scrolls: on a phone the plot is wider than the page
            element("picture", dark, light),
            tabindex="0",
            role="group",
            aria_label=plot.title,
        ),
    )


def part_of(part: str, columns: list[str], rows: Mapping[str, Cells]) -> Markup:
    """The metrics of one part of the report; those of single bands are folded away."""
    whole: dict[str, Cells] = {}
    bands: dict[str, Cells] = {}
    for name, cells in rows.items():
        group = bands if name.startswith("band_") else whole
        group[name] = cells
    words = metric_words(part)
    by_band = Markup("")
    if bands:
        table = table_of(columns, bands, f"{words} by band")
        by_band = element("details", element("summary", "By band"), table)
    heading = element("h2", words[:1].upper() + words[1:])
    return element("section", heading, table_of(columns, whole, words), by_band, class_="panel")


def table_of(columns: list[str], rows: Mapping[str, Cells], label: str) -> Markup:
    """A table in a box that scrolls; columns without a value are left out."""
    filled: set[str] = set()
    for cells in rows.values():
        filled.update(cells)
    used = [column for column in columns if column in filled]
    head = [element("td", "")]
    for column in used:
        head.append(element("th", column_words(column), scope="col", class_="number"))
    body = []
    for name, cells in rows.items():
        metric = next(iter(cells.values()))
        words = " ".join(map(metric_words, name.split(" ")))
        unit = f" ({metric['unit']})" if metric["unit"] else ""
        better = metric["better"]
        arrow = element("span", ARROWS[better], class_="way", title=BETTER[better])
        head_cell = element("th", arrow, f"{words}{unit}", scope="row", title=metric["about"])
        body.append(element("tr", head_cell, [cell_of(cells.get(column)) for column in used]))
    table = element("table", element("thead", element("tr", head)), element("tbody", body))
    return element("div", table, class_="wide", tabindex="0", role="region", aria_label=label)


def cell_of(metric: Mapping[str, Any] | None) -> Markup:
    """A value with its interval below it in small print, the number of songs as its tooltip."""
    if metric is None:
        return element("td", "")
    value, space, ends = format_value(metric).partition(" ")
    interval = element("span", f"{space}{ends}", class_="ends")
    return element("td", value, interval, class_="number", title=f"{metric['count']} songs")


def slices_of(metrics: Mapping[str, Any]) -> Markup:
    """Every metric by artist, genre and language, folded."""
    folded = []
    for name, metric in metrics.items():
        if not metric["slices"]:
            continue
        rows = []
        for label, one in metric["slices"].items():
            head = element("th", label.replace("=", " "), scope="row")
            rows.append(element("tr", head, cell_of(one), element("td", f"{one['count']} songs")))
        words = " · ".join(map(metric_words, name.split("/")))
        table = element("table", rows)
        scroll = element("div", table, class_="wide", tabindex="0", role="region", aria_label=words)
        folded.append(element("details", element("summary", words), scroll))
    if not folded:
        return Markup("")
    heading = element("h2", "By artist, genre and language")
    return element("section", heading, folded, class_="panel")
