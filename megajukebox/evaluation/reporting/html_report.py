"""A report as a page: plots, then every figure with its interval, then the slices. Opens from disk, no scripts."""

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import megajukebox.explorer
from megajukebox import __version__
from megajukebox.common.files import make_folder, write_atomic
from megajukebox.evaluation.reporting.names import column_name, pretty
from megajukebox.evaluation.reporting.plots import THEMES, Plot, plots_of, svg
from megajukebox.evaluation.reporting.table import ARROWS, grid, in_words
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


def write_page(out: Path, report: Mapping[str, Any]) -> Path:
    """index.html and its pictures in the folder `out`; returns the page's path."""
    plots = plots_of(report)
    make_folder(out / "plots")
    for name, _, draw, height in plots:
        for theme in THEMES:
            write_atomic(out / "plots" / f"{name}.{theme}.svg", svg(draw, theme, height))
    write_atomic(out / "index.html", page(report, plots).encode())
    return out / "index.html"


def page(report: Mapping[str, Any], plots: list[Plot]) -> str:
    subject = report["subject"]
    title = f"Score of {Path(subject['path']).name}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{title} · megajukebox"),
        element("link", rel="icon", href="data:,"),
        element("style", Markup(STYLE.read_text() + MORE_STYLE)),
    )
    sections = [table_of(part, columns, rows) for part, columns, rows in grid(report["figures"])]
    body = element(
        "body",
        element("header", element("span", "megajukebox", class_="brand"), class_="site"),
        element(
            "main",
            element(
                "div", element("h1", title), element("p", moment(report["time"])), class_="heading"
            ),
            notes(report),
            element("section", facts(report), class_="panel"),
            element(
                "section",
                element("h2", "Plots"),
                [picture(*plot[:2]) for plot in plots],
                class_="panel",
            )
            if plots
            else "",
            sections,
            slices(report["figures"]),
        ),
        element(
            "footer",
            f"Made by megajukebox {__version__}. Intervals hold 95 %; docs/evaluation.md defines every figure.",
        ),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def moment(unix_seconds: float) -> str:
    return datetime.fromtimestamp(unix_seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def facts(report: Mapping[str, Any]) -> Markup:
    subject, settings = report["subject"], report["settings"]
    weights = subject["weights"] if isinstance(subject["weights"], list) else [subject["weights"]]
    rows = [
        ("scored", f"{subject['kind']}, {subject['path']}"),
        ("step", None if subject["step"] is None else f"{subject['step']:,}"),
        ("weights", ", ".join(w[:12] for w in weights)),
        *(
            (f"against {s['kind']}", f"{s['source']} ({s['fingerprint'][:12]})")
            for s in report["against"]
        ),
        ("songs judged", str(len(report["songs"]))),
        ("embedding", settings.get("embedder")),
        (
            "left out",
            f"{len(report['refused'])} that cannot be read" if report["refused"] else None,
        ),
    ]
    pairs = [
        element("div", element("dt", name), element("dd", value)) for name, value in rows if value
    ]
    return element("dl", pairs, class_="facts")


def notes(report: Mapping[str, Any]) -> Markup:
    lines = [
        *report["notes"],
        *(f"{key}: {why}" for key, why in list(report["refused"].items())[:20]),
    ]
    if not lines:
        return Markup("")
    return element("aside", element("ul", [element("li", line) for line in lines]), class_="note")


def picture(name: str, title: str) -> Markup:
    """The light or the dark drawing, as the reader's system has it. The tables say the same in numbers."""
    dark = element("source", srcset=f"plots/{name}.dark.svg", media="(prefers-color-scheme: dark)")
    light = element(
        "img",
        src=f"plots/{name}.light.svg",
        alt=f"{title} (the numbers are in the tables below)",
        loading="lazy",
    )
    scrolls = {
        "tabindex": "0",
        "role": "group",
        "aria_label": title,
    }  # on a phone it is wider than the page
    return element(
        "figure",
        element("figcaption", title),
        element("div", element("picture", dark, light), **scrolls),
    )


def table_of(part: str, columns: list[str], rows: Mapping[str, Mapping[str, Any]]) -> Markup:
    """One part's figures; those of single bands are folded away."""
    plain = {name: cells for name, cells in rows.items() if not name.startswith("band_")}
    bands = {name: cells for name, cells in rows.items() if name.startswith("band_")}
    name = pretty(part)
    folded = element(
        "details", element("summary", "By band"), table(columns, bands, f"{name} by band")
    )
    more = folded if bands else Markup("")
    return element(
        "section",
        element("h2", name[:1].upper() + name[1:]),
        table(columns, plain, name),
        more,
        class_="panel",
    )


def table(columns: list[str], rows: Mapping[str, Mapping[str, Any]], about: str) -> Markup:
    used = [column for column in columns if any(column in cells for cells in rows.values())]
    head = [
        element("td", ""),
        *(element("th", column_name(c), scope="col", class_="number") for c in used),
    ]
    body = [
        element("tr", row_head(name, cells), [cell(cells.get(c)) for c in used])
        for name, cells in rows.items()
    ]
    return element(
        "div", element("table", element("thead", element("tr", head)), element("tbody", body)),
        class_="wide", tabindex="0", role="region", aria_label=about,
    )  # fmt: skip


def row_head(name: str, cells: Mapping[str, Any]) -> Markup:
    figure = next(iter(cells.values()))
    words = " ".join(pretty(word) for word in name.split(" "))
    unit = f" ({figure['unit']})" if figure["unit"] else ""
    way = element("span", ARROWS[figure["better"]], class_="way", title=BETTER[figure["better"]])
    return element("th", way, f"{words}{unit}", scope="row", title=figure["about"])


def cell(figure: Mapping[str, Any] | None) -> Markup:
    if figure is None:
        return element("td", "")
    value, space, rest = in_words(figure).partition(" ")
    interval = element("span", f"{space}{rest}", class_="ends")
    return element("td", value, interval, class_="number", title=f"{figure['count']} songs")


def slices(figures: Mapping[str, Any]) -> Markup:
    """Every figure that differs by artist, genre or language, folded."""
    found = []
    for name, figure in figures.items():
        if figure["slices"]:
            rows = [
                element(
                    "tr",
                    element("th", label.replace("=", " "), scope="row"),
                    cell({"count": 0, **some}),
                    element("td", f"{some['count']} songs"),
                )
                for label, some in figure["slices"].items()
            ]
            words = " · ".join(pretty(word) for word in name.split("/"))
            found.append(
                element(
                    "details",
                    element("summary", words),
                    element(
                        "div",
                        element("table", rows),
                        class_="wide",
                        tabindex="0",
                        role="region",
                        aria_label=words,
                    ),
                )
            )
    return (
        element("section", element("h2", "By artist, genre and language"), found, class_="panel")
        if found
        else Markup("")
    )
