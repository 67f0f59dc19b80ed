"""Which start of a run is the newest: an older one that comes back to life must not write.

A node that SLURM gave up may still run its processes. Each start therefore takes the run by writing a token of its own
into `<run>/generation.json`; a process that finds another token there has been replaced, and leaves.
"""

import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from megajukebox.common.files import make_run_folder, write_atomic
from megajukebox.common.world import host
from megajukebox.records.jsonl_tail import read_object
from megajukebox.records.schema import SCHEMA
from megajukebox.resilience.exit_codes import TerminateRun

FILE = "generation.json"


@dataclass(frozen=True)
class FencingToken:
    """One start of a run: the same on all of its ranks."""

    run: Path
    number: int
    token: str

    @classmethod
    def acquire(cls, run: Path) -> "FencingToken":
        """Make this start the newest one of `run`. By rank 0; the heartbeats and exits of earlier starts are removed."""
        make_run_folder(run)
        taken = cls(run, read_object(run / FILE).get("number", 0) + 1, secrets.token_hex(8))
        record = {
            "schema": SCHEMA,
            "number": taken.number,
            "token": taken.token,
            "host": host(),
            "pid": os.getpid(),
            "time": time.time(),
            "job": os.environ.get("SLURM_JOB_ID"),
        }
        write_atomic(run / FILE, json.dumps(record).encode())
        for folder in ("heartbeats", "exits"):
            for old in (run / folder).glob("rank-*.json"):
                old.unlink(missing_ok=True)
        return taken

    def is_current(self) -> bool:
        """Whether no other start has taken the run. Unreadable storage is not a reason to think so."""
        return read_object(self.run / FILE).get("token", self.token) == self.token

    def check(self) -> None:
        """Raises TerminateRun if another start has taken the run: call it before anything is made final."""
        if not self.is_current():
            raise TerminateRun(
                "fenced",
                f"another start of {self.run} has taken over from generation {self.number}",
            )
