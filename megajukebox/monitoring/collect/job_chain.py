"""What a run's supervisor last saw of its job and of those queued after it (chain.json)."""

from dataclasses import dataclass
from pathlib import Path

from megajukebox.records.jsonl_tail import read_object
from megajukebox.records.productive_time import number

FILE = "chain.json"  # as resilience/job_chain.py writes it
FRESH = 900.0  # seconds; older than this it says nothing of now


@dataclass(frozen=True)
class JobChain:
    time: float
    queued: int  # jobs that go on after the present one
    ends: float | None  # when the present one reaches its time limit; None without a limit
    queued_seconds: float | None  # their limits together; None if one has none
    array: bool  # the job is one of a row of jobs; a single one puts itself back into the queue

    def left(self, now: float) -> float | None:
        """Seconds that the present job may still take."""
        return None if self.ends is None else max(0.0, self.ends - now)

    def seconds(self, now: float) -> float | None:
        """Seconds that all of them may still take, without waiting in between."""
        left = self.left(now)
        return (
            None
            if left is None or self.queued_seconds is None or not self.array
            else left + self.queued_seconds
        )


def chain_of(folder: Path, now: float) -> JobChain | None:
    """Of a run, or of several that one supervisor has in the folder above."""
    told = read_object(folder / FILE) or read_object(folder.parent / FILE)
    when, queued = number(told.get("time")), number(told.get("queued"))
    if when is None or queued is None or now - when > FRESH:
        return None
    ends, more = number(told.get("ends")), number(told.get("queued_seconds"))
    return JobChain(when, int(queued), ends, more, isinstance(told.get("array"), str))
