"""The queue as a supervised run sees it: how long its job may last, and how many that follow it wait.

Written to slurm_chain.json in the run folder, so that monitoring need not ask SLURM.
"""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from megajukebox.records.job_chain import CHAIN_FILE, JobChain
from megajukebox.records.schema import write_record
from megajukebox.resilience import slurm

REPORT_SECONDS = 60.0
FIELDS = "%A|%F|%T|%L|%l|%r|%j|%E"  # of squeue: those of QueuedJob, in its order
SECONDS_OF_UNIT = (1, 60, 3600)  # of the last three numbers of a SLURM time


@contextmanager
def report_queue(run: Path, every: float = REPORT_SECONDS) -> Iterator[None]:
    """Inside, a thread renews the file; outside a job there is none."""
    if slurm.job() is None:
        yield
        return
    over = threading.Event()

    def keep_reporting() -> None:
        while not over.is_set():
            write_chain(run)
            over.wait(every)

    threading.Thread(target=keep_reporting, name="job chain", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def write_chain(run: Path) -> None:
    """A controller that does not answer, or a full disk, leaves the file as it was: its `time` is its age."""
    user = ("--me", "--states", "PENDING,RUNNING")
    listed = slurm.ask("squeue", "--noheader", "--array", *user, "--format", FIELDS).splitlines()
    chain = parse_squeue(slurm.job() or "", slurm.chain(), listed, time.time())
    if chain is not None:
        with suppress(OSError):
            write_record(run / CHAIN_FILE, chain)


@dataclass(frozen=True)
class QueuedJob:
    """A line of squeue: one task of an array, or a job without one."""

    number: str
    array: str
    running: bool
    seconds_left: float | None  # None without a limit
    limit: float | None  # seconds
    held: bool
    name: str
    after: frozenset[str]  # the jobs that it waits for


def parse_squeue(job: str, array: str | None, listed: list[str], now: float) -> JobChain | None:
    """What `job` sees in the lines of squeue; None if it does not see itself.

    After it come the tasks of its array, and arrays of the same name that wait for it (`--dependency=afterany:ARRAY`):
    those of other names are other stages. A held one does not come by itself.
    """
    jobs = list(filter(None, map(parse_line, listed)))
    mine = next((entry for entry in jobs if entry.number == job and entry.running), None)
    if mine is None:
        return None
    arrays = arrays_after(array or job, mine.name, jobs)
    limits = []  # of the jobs that will start by themselves
    for entry in jobs:
        if entry.array in arrays and not (entry.running or entry.held):
            limits.append(entry.limit)
    return JobChain(
        time=now,
        job=job,
        array=array,
        queued=len(limits),
        end_time=None if mine.seconds_left is None else now + mine.seconds_left,
        queued_seconds=None if None in limits else sum(limit or 0.0 for limit in limits),
    )


def arrays_after(first: str, name: str, jobs: list[QueuedJob]) -> set[str]:
    """Array `first`, and those called `name` that wait for it or for one another."""
    chain = {first}
    while True:
        waiting = {job.array for job in jobs if job.name == name and job.after & chain}
        if waiting <= chain:
            return chain
        chain |= waiting


def parse_line(line: str) -> QueuedJob | None:
    """A line of squeue in FIELDS; None for one that does not fit: a job's name may hold anything."""
    parts = list(map(str.strip, line.split("|")))
    if len(parts) != FIELDS.count("|") + 1:
        return None
    number, array, state, left, limit, reason, name, after = parts
    return QueuedJob(
        number=number,
        array=array,
        running=state == "RUNNING",
        seconds_left=parse_seconds(left),
        limit=parse_seconds(limit),
        held="Held" in reason,
        name=name,
        after=frozenset(re.findall(r"(?<=[:,])\d+", after)),
    )


def parse_seconds(text: str) -> float | None:
    """2-03:04:05 -> 183845; None for UNLIMITED and whatever else is no time."""
    matched = re.fullmatch(r"(?:(\d+)-)?((?:\d+:){0,2}\d+)", text)
    if matched is None:
        return None
    total = int(matched[1] or 0) * 86400
    for unit, count in zip(SECONDS_OF_UNIT, reversed(matched[2].split(":"))):
        total += unit * int(count)
    return float(total)
