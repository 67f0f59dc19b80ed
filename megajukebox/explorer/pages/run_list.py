"""The list of runs: where each stands, what is wrong, and the way to its page."""

from dataclasses import dataclass

from megajukebox.explorer.loaders.runs import ListedRun
from megajukebox.explorer.pages.layout import render_page
from megajukebox.explorer.site_files import safe_name
from megajukebox.monitoring.alerts import ActiveAlert, diagnose, format_duration

HOW_TO_TRAIN = "megajukebox train --help\nmegajukebox explore build samples runs"
HEADINGS = ("Run", "Status", "Step", "Left", "Loss", "Goodput", "Restarts", "What is wrong")


@dataclass(frozen=True)
class RunRow:
    """One row of the table; `page` is the URL of the run's page."""

    name: str
    page: str
    status: str
    step: str
    time_left: str
    loss: str
    goodput: str
    restarts: int
    alerts: list[ActiveAlert]


def runs_page(runs: list[ListedRun]) -> str:
    """All runs, in the order in which they were started."""
    rows = []
    for run in runs:
        state = run.state
        loss = state.value("loss")
        row = RunRow(
            name=run.name,
            page=f"run/{safe_name(run.name)}.html",
            status=state.status,
            step=f"{state.step:,} of {state.target:,}" if state.target else f"{state.step:,}",
            time_left=time_left(run) or "",
            loss="" if loss is None else f"{loss:.4g}",
            goodput=percent(state.account.goodput),
            restarts=sum(state.restarts.values()),
            alerts=diagnose(state),
        )
        rows.append(row)
    return render_page(
        "run_list.html",
        "Runs",
        tab="Runs",
        scripts=("live.js",) if runs else (),
        runs=rows,
        headings=HEADINGS,
        live=any(run.state.alive for run in runs),
        commands=HOW_TO_TRAIN,
    )


def time_left(run: ListedRun) -> str | None:
    """How long a live run still needs, where that can be predicted."""
    eta_seconds = run.state.eta_seconds
    return format_duration(eta_seconds) if eta_seconds is not None and run.state.alive else None


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
