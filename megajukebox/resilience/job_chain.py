"""The queue as a supervised run sees it: how long its job may last, and how many that go on after it wait.

Written to chain.json in the run folder, so that whoever watches the run need not ask SLURM.
"""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from megajukebox.common.files import write_atomic
from megajukebox.resilience import slurm

FILE = "chain.json"
EVERY = 60.0  # seconds
FIELDS = "%A|%F|%T|%L|%l|%r|%j|%E"
UNITS = (1, 60, 3600)  # of the last three numbers of a SLURM time


@contextmanager
def report_queue(run: Path, every: float = EVERY) -> Iterator[None]:
    """Inside, the file is renewed by a thread of its own; outside a job there is none."""
    if slurm.job() is None:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(
        target=_keep_telling, args=(run, over, every), name="chain", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        over.set()


def _keep_telling(run: Path, over: threading.Event, every: float) -> None:
    while not over.is_set():
        tell(run)
        over.wait(every)


def tell(run: Path) -> None:
    """A controller that does not answer, or a full disk, leaves the file as it was: its `time` tells its age."""
    user = ("--me", "--states", "PENDING,RUNNING")
    listed = slurm.ask("squeue", "--noheader", "--array", *user, "--format", FIELDS).splitlines()
    found = parse_squeue(slurm.job() or "", slurm.chain(), listed, time.time())
    if found is not None:
        with suppress(OSError):
            write_atomic(run / FILE, json.dumps(found).encode())


@dataclass(frozen=True)
class QueuedJob:
    """A line of squeue: one task of an array, or a job without one."""

    number: str
    array: str
    running: bool
    left: float | None  # seconds; None without a limit
    limit: float | None
    held: bool
    name: str
    after: frozenset[str]  # the jobs that it waits for


def parse_squeue(job: str, array: str | None, listed: list[str], now: float) -> dict | None:
    """What `job` sees in the lines of squeue; None if it does not see itself.

    After it come the tasks of its array, and arrays of the same name that wait for it (`--dependency=afterany:ARRAY`):
    those of other names are other stages. A held one does not come by itself.
    """
    entries = [entry for entry in map(entry_of, listed) if entry is not None]
    mine = next((entry for entry in entries if entry.number == job and entry.running), None)
    if mine is None:
        return None
    chain = {array or job}
    while more := {e.array for e in entries if e.name == mine.name and e.after & chain} - chain:
        chain |= more
    coming = [
        entry for entry in entries if entry.array in chain and not entry.running and not entry.held
    ]
    limits = [entry.limit for entry in coming]
    return {
        "time": now, "job": job, "array": array, "queued": len(coming),
        "ends": None if mine.left is None else now + mine.left,
        "queued_seconds": None if None in limits else sum(limit or 0.0 for limit in limits),
    }  # fmt: skip


def entry_of(line: str) -> QueuedJob | None:
    parts = line.split("|")
    if len(parts) != FIELDS.count("|") + 1:  # a name may hold anything
        return None
    number, array, state, left, limit, reason, name, after = (part.strip() for part in parts)
    jobs = frozenset(re.findall(r"(?<=[:,])\d+", after))
    return QueuedJob(
        number,
        array,
        state == "RUNNING",
        seconds(left),
        seconds(limit),
        "Held" in reason,
        name,
        jobs,
    )


def seconds(text: str) -> float | None:
    """2-03:04:05 -> 183845; None for UNLIMITED and whatever else is no time."""
    found = re.fullmatch(r"(?:(\d+)-)?((?:\d+:){0,2}\d+)", text)
    if found is None:
        return None
    places = [int(place) for place in reversed(found[2].split(":"))]
    return float(
        int(found[1] or 0) * 86400 + sum(place * unit for place, unit in zip(places, UNITS))
    )
