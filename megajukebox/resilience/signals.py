"""Requests to a run: signals and the files STOP and SAVE only raise a flag, the loop acts between steps."""

import signal
import time
from enum import IntEnum
from pathlib import Path

from megajukebox.resilience.fencing import FencingToken

# Seconds between two looks at the files: a shared file system is asked by one rank, and not too often.
LOOK_SECONDS = 1.0
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Request(IntEnum):
    """What is asked of a run; of several the largest counts."""

    NONE = 0
    SAVE = 1
    STOP = 2
    FENCED = 3  # another start has taken the run


class SignalHandler:
    """Every rank receives signals; rank 0 also looks for files. The ranks then agree on the strongest request."""

    def __init__(self, run: Path, rank: int, generation: FencingToken) -> None:
        self.run = run
        self.rank = rank
        self.generation = generation
        self.signal: int | None = None
        self.reason = ""
        self._looked = float("-inf")
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: object) -> None:
        self.signal = number

    def now(self) -> Request:
        """The strongest request that this rank knows of."""
        by_signal = Request.NONE
        if self.signal is not None:
            self.reason = f"signal {signal.Signals(self.signal).name}"
            by_signal = Request.STOP
        if self.rank or time.monotonic() - self._looked < LOOK_SECONDS:
            return by_signal
        self._looked = time.monotonic()
        if not self.generation.is_current():
            return Request.FENCED
        if (self.run / "STOP").exists():
            self.reason = "the file STOP"
            return Request.STOP
        by_file = Request.SAVE if (self.run / "SAVE").exists() else Request.NONE
        return max(by_signal, by_file)

    def saved(self, request: int) -> None:
        """If the request was SAVE it has been met."""
        if request == Request.SAVE and self.rank == 0:
            (self.run / "SAVE").unlink(missing_ok=True)
