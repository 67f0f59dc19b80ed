"""What the world asks of a run: signals and the files STOP and SAVE only raise a flag, the loop acts between steps."""

import signal
import time
from pathlib import Path

from megajukebox.resilience.fencing import FencingToken

NOTHING, SAVE, STOP, FENCED = range(4)
LOOK_EVERY = 1.0  # seconds between two looks at the files: a shared file system is asked by one rank, and not too often
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class SignalHandler:
    """Every rank hears signals; rank 0 also looks for files. The ranks then agree on the strongest order."""

    def __init__(self, run: Path, rank: int, generation: FencingToken) -> None:
        self.run, self.rank, self.generation = run, rank, generation
        self.signal: int | None = None
        self.reason = ""
        self._looked = float("-inf")
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.signal = number

    def now(self) -> int:
        """The strongest order that this rank knows of."""
        if self.signal is not None:
            self.reason = f"signal {signal.Signals(self.signal).name}"
        return max(STOP if self.signal is not None else NOTHING, self._files())

    def _files(self) -> int:
        if self.rank or time.monotonic() - self._looked < LOOK_EVERY:
            return NOTHING
        self._looked = time.monotonic()
        if not self.generation.is_current():
            return FENCED
        if (self.run / "STOP").exists():
            self.reason = "the file STOP"
            return STOP
        return SAVE if (self.run / "SAVE").exists() else NOTHING

    def saved(self, order: int) -> None:
        """If the order was SAVE it has been obeyed."""
        if order == SAVE and self.rank == 0:
            (self.run / "SAVE").unlink(missing_ok=True)
