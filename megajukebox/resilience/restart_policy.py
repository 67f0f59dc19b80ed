"""What became of one attempt at a run, read from what its ranks left: try again, leave it, or call a person.

The launcher's exit status is not enough: srun returns the highest of its tasks' codes, and that of a killed task hides
all others. Only the run folder is read, so the same answer is found after the job, its node or SLURM itself is gone.
"""

import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from megajukebox.common.files import read_record
from megajukebox.records.run_log import read_lines
from megajukebox.resilience.fencing import FILE
from megajukebox.resilience.hang_attribution import read_heartbeats

NO_PROGRESS = 3  # attempts in a row without a new checkpoint, after which trying again is a waste
DEATHS = 2  # of ranks on one node within `WITHIN`, after which the run leaves that node
WITHIN = 24 * 3600.0
SILENT = (
    7.0  # seconds that a rank fell silent before the last one did, to be the one that died first
)


@dataclass(frozen=True)
class AttemptOutcome:
    """`kind`: done, stopped, fenced, person or again. `nodes`: where ranks died that nobody had asked to."""

    kind: str
    reason: str
    nodes: tuple[str, ...] = ()


def generation_of(run: Path) -> int:
    return read_record(run / FILE).get("number", 0)


def classify_attempt(run: Path, before: int, status: int) -> AttemptOutcome:
    """What became of the attempt that began when the run was at generation `before` and ended with `status`."""
    generation = generation_of(run)
    if generation == before and (run / "DONE").exists():
        return AttemptOutcome("done", "all runs within are done")
    if (
        generation == before
    ):  # it ended before it took the run: bad settings, or the ranks never met
        kind = "person" if status == 93 else "again"
        return AttemptOutcome(
            kind, f"the attempt ended with status {status} before it began to train"
        )
    job = read_record(run / FILE).get("job")
    if job != os.environ.get("SLURM_JOB_ID"):
        return AttemptOutcome("fenced", f"job {job} has taken over the run")
    records = [read_record(path) for path in sorted((run / "exits").glob("rank-*.json"))]
    records = [record for record in records if record.get("generation") == generation]
    for code, kind in ((98, "fenced"), (93, "person")):
        for record in records:
            if record["code"] == code:
                return AttemptOutcome(kind, told(record))
    if (run / "DONE").exists():
        return AttemptOutcome("done", "the last step is trained and saved")
    if (
        records
        and all(record["code"] == 85 for record in records)
        and events(run, "stop", generation)
    ):
        return AttemptOutcome(
            "stopped", events(run, "stop", generation)[-1].get("reason", "asked to stop")
        )
    first = next((r for r in records if r["class"] not in ("peer", "stopped")), None)
    dead = blamed(run, generation, records)
    reason = (
        told(first)
        if first
        else f"ranks on {', '.join(dead) or 'unknown nodes'} died; status {status}"
    )
    return AttemptOutcome("again", reason, tuple(dead))


def told(record: dict) -> str:
    return f"rank {record['rank']} on {record['host']}: {record['class']}: {record['reason']}"


def events(run: Path, name: str, generation: int) -> list[dict]:
    """The events called `name` since a generation began; one that ended while it loaded has not said that it did."""
    found: list[dict] = []
    for event in read_lines(run / "events.jsonl"):
        began = event["event"] in ("start", "resume") and event.get("generation") == generation
        if began or event["event"] == "attempt_end":
            found = []
        if event["event"] == name:
            found.append(event)
    return found


def blamed(run: Path, generation: int, records: list[dict]) -> list[str]:
    """Nodes whose ranks brought the attempt down: named by a hang or by other weights than the rest, or dead without a
    record of their own.

    If no rank could leave a record, the launcher killed all; then those that fell silent first are to blame.
    """
    named = [
        e for name in ("hang", "alert") for e in events(run, name, generation) if e.get("hosts")
    ]
    if named:
        return sorted(set(named[-1]["hosts"]))
    recorded = {record["rank"] for record in records}
    silent = [beat for beat in read_heartbeats(run, generation) if beat["rank"] not in recorded]
    if not recorded and silent:
        last = max(beat["time"] for beat in silent)
        silent = [beat for beat in silent if last - beat["time"] > SILENT]
    return sorted({beat["host"] for beat in silent})


def node_failures(run: Path, now: float | None = None) -> Counter[str]:
    """How often attempts of the last day blame each node; one that the doctor found unfit counts as often as needed."""
    since = (time.time() if now is None else now) - WITHIN
    count: Counter[str] = Counter()
    for event in read_lines(run / "events.jsonl"):
        weight = {"attempt_end": 1, "preflight": DEATHS}.get(event["event"], 0)
        for node in set(event.get("nodes", [])) if weight and event["time"] > since else ():
            count[node] += weight
    return count


def nodes_to_exclude(run: Path, most: int, now: float | None = None) -> list[str]:
    """Nodes that are blamed at least twice, the worst first; `most` of them, for without enough nodes a run waits for
    ever.
    """
    deaths = node_failures(run, now)
    return sorted(
        (node for node, count in deaths.items() if count >= DEATHS), key=lambda n: (-deaths[n], n)
    )[:most]


def attempts_without_progress(run: Path) -> int:
    """Attempts in a row, up to now, that ended badly or before they began (preflight), with no checkpoint saved in
    between, here or in a run within.
    """
    told = [
        event
        for path in (run / "events.jsonl", *run.glob("*/events.jsonl"))
        for event in read_lines(path)
    ]
    count = 0
    for event in sorted(told, key=lambda event: -event["time"]):
        if event["event"] == "save" or (
            event["event"] == "attempt_end" and event.get("kind") == "stopped"
        ):
            break
        count += event["event"] == "attempt_end" or (
            event["event"] == "preflight" and event["verdict"] == "bad"
        )
    return count
