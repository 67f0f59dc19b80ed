"""The list of runs: where each stands, what is wrong, and the way to its page."""

from megajukebox.explorer.loaders.runs import ListedRun
from megajukebox.explorer.pages.html import Markup, element, joined
from megajukebox.explorer.pages.layout import copyable, page
from megajukebox.explorer.site_files import safe_name
from megajukebox.monitoring.alerts import diagnose, format_duration

HOW_TO_TRAIN = "megajukebox train --help\nmegajukebox explore samples runs"
HEADS = ("Run", "Status", "Step", "Left", "Loss", "Goodput", "Restarts", "What is wrong")


def runs_page(runs: list[ListedRun]) -> str:
    """All runs, in the order in which they were started."""
    count = f"{len(runs)} run{'s' * (len(runs) > 1)}" if runs else ""
    heading = element("div", element("h1", "Runs"), element("p", count), class_="heading")
    if not runs:
        say = element(
            "p",
            "No run folder was given, or none was found in it. Train one, then build this page again:",
        )
        none = element("section", say, copyable(HOW_TO_TRAIN, "commands"), class_="panel")
        return page("Runs", "Runs", "", heading, none)
    head = element("tr", [element("th", name, scope="col") for name in HEADS])
    table = element(
        "table", element("thead", head), element("tbody", [row(run) for run in runs]), class_="runs"
    )
    scroll = element("div", table, class_="scroll", tabindex="0", role="region", aria_label="Runs")
    live = any(run.state.alive for run in runs)
    content = element("section", scroll, class_="panel", data_live=live)
    return page("Runs", "Runs", "", heading, content, scripts=("live.js",))


def row(run: ListedRun) -> Markup:
    state, loss = run.state, run.state.value("loss")
    problems = diagnose(state)
    wrong = [
        element("p", element("b", p.alert.removeprefix("Jukebox")), f" {p.what}") for p in problems
    ]
    cells: list[str] = [
        element("a", run.name, href=f"run/{safe_name(run.name)}.html"),
        status(run),
        f"{state.step:,} of {state.target:,}" if state.target else f"{state.step:,}",
        format_duration(state.eta_seconds) if state.eta_seconds is not None and state.alive else "",
        f"{loss:.4g}" if loss is not None else "",
        percent(state.account.goodput),
        str(sum(state.restarts.values())),
        joined(wrong),
    ]
    return element("tr", [element("td", cell) for cell in cells])


def status(run: ListedRun) -> Markup:
    return element("span", run.state.status, class_=f"status {run.state.status}")


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
