"""What a run's supervisor last saw of its SLURM job and of those queued after it: slurm_chain.json in the run folder."""

from dataclasses import dataclass
from pathlib import Path

from megajukebox.records.jsonl_tail import read_object
from megajukebox.records.schema import from_record, is_current, renamed

CHAIN_FILE = "slurm_chain.json"
VERSION_1_FILE = "chain.json"
VERSION_1_FIELDS = {"ends": "end_time"}
MAX_AGE = 900.0  # seconds; an older record says nothing of now


@dataclass(frozen=True)
class JobChain:
    time: float = 0.0
    job: str | None = None
    array: str | None = None  # None: a single job, which puts itself back into the queue
    queued: int = 0  # jobs that follow the present one
    end_time: float | None = None  # of the present one's time limit; None without a limit
    queued_seconds: float | None = None  # their limits together; None if one has none

    def job_seconds_left(self, now: float) -> float | None:
        """Seconds that the present job may still take."""
        return None if self.end_time is None else max(0.0, self.end_time - now)

    def seconds_left(self, now: float) -> float | None:
        """Seconds that all of them may still take, without waiting in between; None outside a chain."""
        left = self.job_seconds_left(now)
        if left is None or self.queued_seconds is None or self.array is None:
            return None
        return left + self.queued_seconds


def read_chain(run: Path, now: float) -> JobChain | None:
    """Of a run, or of several that one supervisor has in the folder above; None if there is no fresh one."""
    for folder in (run, run.parent):
        record = read_object(folder / CHAIN_FILE) or read_object(folder / VERSION_1_FILE)
        if record:
            current = record if is_current(record) else renamed(record, VERSION_1_FIELDS)
            chain = from_record(JobChain, current)
            known = isinstance(record.get("queued"), int | float)
            return chain if known and now - chain.time <= MAX_AGE else None
    return None
