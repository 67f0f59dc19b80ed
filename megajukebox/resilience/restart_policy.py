"""What became of one attempt at a run, read from what its ranks left: retry, leave it, or call an operator.

The launcher's exit status is not enough: srun returns the highest of its tasks' codes, and that of a killed task hides
all others. Only the run folder is read, so the same answer comes out after the job, its node or SLURM itself is gone.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from megajukebox.common.errors import EXIT_FATAL
from megajukebox.records.events import (
    AlertRaised,
    AttemptEnded,
    AttemptStarted,
    CheckpointSaved,
    CollectiveStuck,
    Event,
    HangDetected,
    PreflightFinished,
    RunStopped,
    read_events,
)
from megajukebox.records.exits import ProcessExit, read_exits
from megajukebox.records.heartbeat import read_heartbeats
from megajukebox.records.jsonl_tail import read_object
from megajukebox.resilience.exit_codes import EXIT_FENCED, EXIT_PREEMPTED
from megajukebox.resilience.fencing import FILE

MAX_FRUITLESS_ATTEMPTS = 3  # in a row without a new checkpoint, after which retrying is a waste
FAILURES_TO_EXCLUDE = (
    2  # of ranks on one node within BLAME_SECONDS, after which the run leaves that node
)
BLAME_SECONDS = 24 * 3600.0
SILENT_SECONDS = (
    7.0  # that a rank fell silent before the last one did, to be the one that died first
)

E = TypeVar("E", bound=Event)


@dataclass(frozen=True)
class AttemptOutcome:
    """`kind`: done, stopped, fenced, fatal or retry. `nodes`: where ranks died that nobody had asked to."""

    kind: str
    reason: str
    nodes: tuple[str, ...] = ()


def generation_of(run: Path) -> int:
    return read_object(run / FILE).get("number", 0)


def classify_attempt(run: Path, before: int, status: int) -> AttemptOutcome:
    """What became of the attempt that began when the run was at generation `before` and ended with `status`."""
    generation = generation_of(run)
    if generation == before:
        # It ended before it took the run: all is done, the settings are bad, or the ranks never met.
        if (run / "DONE").exists():
            return AttemptOutcome("done", "all runs within are done")
        kind = "fatal" if status == EXIT_FATAL else "retry"
        reason = f"the attempt ended with status {status} before it began to train"
        return AttemptOutcome(kind, reason)
    job = read_object(run / FILE).get("job")
    if job != os.environ.get("SLURM_JOB_ID"):
        return AttemptOutcome("fenced", f"job {job} has taken over the run")
    exits = [record for record in read_exits(run) if record.generation == generation]
    for code, kind in ((EXIT_FENCED, "fenced"), (EXIT_FATAL, "fatal")):
        for record in exits:
            if record.code == code:
                return AttemptOutcome(kind, describe_exit(record))
    if (run / "DONE").exists():
        return AttemptOutcome("done", "the last step is trained and saved")
    stops = list(attempt_events(run, generation, RunStopped))
    if exits and stops and all(record.code == EXIT_PREEMPTED for record in exits):
        return AttemptOutcome("stopped", stops[-1].reason or "asked to stop")
    nodes = blamed_nodes(run, generation, exits)
    cause = next((r for r in exits if r.exit_class not in ("peer_failure", "stopped")), None)
    reason = f"ranks on {', '.join(nodes) or 'unknown nodes'} died; status {status}"
    if cause is not None:
        reason = describe_exit(cause)
    return AttemptOutcome("retry", reason, tuple(nodes))


def describe_exit(record: ProcessExit) -> str:
    return f"rank {record.rank} on {record.host}: {record.exit_class}: {record.reason}"


def attempt_events(run: Path, generation: int, kind: type[E]) -> Iterator[E]:
    """The events of a kind since a generation began; an attempt that ended while it loaded has written no start."""
    since: list[Event] = []
    for event in read_events(run, bad_samples=False):
        started = isinstance(event, AttemptStarted) and event.generation == generation
        if started or isinstance(event, AttemptEnded):
            since = []
        since.append(event)
    return (event for event in since if isinstance(event, kind))


def blamed_nodes(run: Path, generation: int, exits: list[ProcessExit]) -> list[str]:
    """Nodes whose ranks brought the attempt down: named by a hang or by other weights than the rest, or dead without a
    record of their own.

    If no rank could leave a record, the launcher killed all; then those that fell silent first are to blame.
    """
    hangs = [event.hosts for event in attempt_events(run, generation, HangDetected)]
    # Torch's own records know more of a hang than heartbeats do.
    hangs += [event.hosts for event in attempt_events(run, generation, CollectiveStuck)]
    alerts = [event.hosts for event in attempt_events(run, generation, AlertRaised)]
    named = list(filter(None, hangs + alerts))
    if named:
        return sorted(set(named[-1]))
    recorded = {record.rank for record in exits}
    silent = [beat for beat in read_heartbeats(run, generation) if beat.rank not in recorded]
    if not recorded and silent:
        last = max(beat.time for beat in silent)
        silent = [beat for beat in silent if last - beat.time > SILENT_SECONDS]
    return sorted({beat.host for beat in silent})


def node_failures(run: Path, now: float | None = None) -> Counter[str]:
    """How often attempts of the last day blame each node; one that the doctor found unfit counts as often as needed."""
    since = (time.time() if now is None else now) - BLAME_SECONDS
    count: Counter[str] = Counter()
    for event in read_events(run, bad_samples=False):
        if not isinstance(event, AttemptEnded | PreflightFinished) or event.time <= since:
            continue
        weight = 1 if isinstance(event, AttemptEnded) else FAILURES_TO_EXCLUDE
        for node in set(event.nodes):
            count[node] += weight
    return count


def nodes_to_exclude(run: Path, most: int, now: float | None = None) -> list[str]:
    """Nodes that are blamed at least twice, the worst first; `most` of them, for without enough nodes a run waits for
    ever.
    """
    failures = node_failures(run, now)
    bad = [node for node, count in failures.items() if count >= FAILURES_TO_EXCLUDE]
    return sorted(bad, key=lambda node: (-failures[node], node))[:most]


def attempts_without_progress(run: Path) -> int:
    """Attempts in a row, up to now, that ended badly or before they began (preflight), with no checkpoint saved in
    between, here or in a run within.
    """
    events = read_events(run, bad_samples=False)
    for inner in run.glob("*/events.jsonl"):
        events += read_events(inner.parent, bad_samples=False)
    count = 0
    for event in sorted(events, key=lambda event: -event.time):
        stopped = isinstance(event, AttemptEnded) and event.kind == "stopped"
        if stopped or isinstance(event, CheckpointSaved):
            break
        failed_preflight = isinstance(event, PreflightFinished) and event.verdict == "bad"
        count += isinstance(event, AttemptEnded) or failed_preflight
    return count
