"""All runs on one screen: is it moving, is it healthy, can we lose the machine now, what is wrong, what to do.

    megajukebox watch runs/              # refreshes until Ctrl-C
    megajukebox watch runs/ --once       # for cron: exit code 0 all is well, 1 for the morning, 2 act now, 3 it crashed
    megajukebox watch runs/ --json       # the same as JSON, once

Reads the run folders only: the answer is the same on a login node, with the job running, queued or dead.
"""

import contextlib
import json
import time
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from megajukebox.common.command_line import run_command
from megajukebox.monitoring import threshold_options
from megajukebox.monitoring.alerts import PAGE, diagnose
from megajukebox.monitoring.collect.run_reader import Runs
from megajukebox.monitoring.collect.run_state import AlertThresholds, RunState
from megajukebox.monitoring.collect.unreadable import views_of
from megajukebox.monitoring.exporters.terminal import as_json, screen

CRASHED = 3  # exit code of checks that could not check (Nagios: UNKNOWN); Python's own, 1, would say "for the morning"


def main(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or single runs.")],
    once: Annotated[
        bool,
        typer.Option(
            "--once", help="Print once; exit code 0 OK, 1 warning, 2 critical, 3 unknown."
        ),
    ] = False,
    as_text: Annotated[
        bool, typer.Option("--json", help="Print once, as JSON; exit code as with --once.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between refreshes.")] = 5.0,
    stall: threshold_options.Stall = 120,
    silent: threshold_options.Silent = 60,
    checkpoint: threshold_options.Checkpoint = 300,
    down: threshold_options.Down = 900,
) -> None:
    """Watch all runs in and under RUNS."""
    thresholds = AlertThresholds(stall=stall, silent=silent, checkpoint=checkpoint, down=down)
    watched = Runs(runs, thresholds)
    try:
        code = show_once(watched, as_text) if as_text or once else refresh(watched, every)
    except Exception:
        traceback.print_exc()
        code = CRASHED
    raise SystemExit(code)


def show_once(watched: Runs, as_text: bool) -> int:
    """Print how all runs stand; returns the exit code that says it."""
    states = watched.read()
    if as_text:
        print(json.dumps(as_json(states), indent=1))
    else:
        console = Console()
        console.print(screen(states, time.time(), console.width))
    return exit_code(states)


def refresh(watched: Runs, every: float) -> int:
    """Show how all runs stand, again and again until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt), Live(screen=True, auto_refresh=False) as live:
        while True:
            live.update(screen(watched.read(), time.time(), live.console.width), refresh=True)
            time.sleep(every)
    return 0


def exit_code(runs: list[RunState]) -> int:
    """0: nothing is wrong, 1: for the morning (or there is no run at all), 2: act now."""
    severities: set[str] = set()
    for _, alerts in views_of(runs, diagnose):
        severities.update(alert.severity for alert in alerts)
    if PAGE in severities:
        return 2
    return 1 if severities or not runs else 0


if __name__ == "__main__":
    run_command(main, "watch")
