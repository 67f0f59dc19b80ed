"""A run that cannot be read is a row that says so: whatever its folder holds, the other runs are shown as they are."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from megajukebox.monitoring.collect.goodput import TIME_PHASES, TimeAccount
from megajukebox.monitoring.collect.host import Disk
from megajukebox.monitoring.collect.run_state import AlertThresholds, RunState

log = logging.getLogger(__name__)

MAX_REASON = 300  # characters

V = TypeVar("V")


def unreadable_run(
    name: str,
    folder: Path,
    thresholds: AlertThresholds,
    error: Exception,
    now: float | None = None,
) -> RunState:
    """The state of a run of which nothing is known but why."""
    reason = f"{type(error).__name__}: {error}"[:MAX_REASON]
    return RunState(
        name=name,
        folder=folder,
        now=time.time() if now is None else now,
        thresholds=thresholds,
        settings={},
        recent=[],
        held_out={},
        events=[],
        counts=Counter(),
        bad_samples=Counter(),
        skipped_steps=Counter(),
        hangs=Counter(),
        restarts=Counter(),
        sdc_mismatches=0,
        recomputed_steps=0,
        ranks=[],
        exits=[],
        checkpoints=[],
        account=TimeAccount(0.0, dict.fromkeys(TIME_PHASES, 0.0), []),
        flags=frozenset(),
        disk=Disk("", None, None),
        unreadable=0,
        problem=reason,
    )


def views_of(runs: Iterable[RunState], view: Callable[[RunState], V]) -> list[tuple[RunState, V]]:
    """Every run with what `view` makes of it.

    Where `view` fails, a file of the run holds what nobody thought of: then of an unreadable run in its place.
    """
    views: list[tuple[RunState, V]] = []
    for run in runs:
        try:
            views.append((run, view(run)))
        except Exception as error:
            log.debug("%s cannot be shown", run.folder, exc_info=True)
            blank = unreadable_run(run.name, run.folder, run.thresholds, error, run.now)
            views.append((blank, view(blank)))
    return views
