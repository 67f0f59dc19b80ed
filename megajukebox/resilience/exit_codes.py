"""How a training process ends: one exit code a class of ending, and a record of it that outlives the process.

    0  done       85  stopped on request, all saved: start again       75  temporary (hung peer, storage): start again
    93 an operator is needed: starting again would not help            98  a newer start of this run has taken over
     1 a bug: the traceback stands on stderr and in the record

srun returns only the highest code of its tasks, and the code of a killed task hides all others: so every rank leaves
`exits/rank-00000.json`, and the supervisor reads those (`restart_policy.py`).
"""

import errno
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from click import ClickException
from pydantic import ValidationError

from megajukebox.common.errors import EXIT_FATAL, UserError
from megajukebox.common.world import host
from megajukebox.records.exits import ProcessExit, exit_path, read_exit
from megajukebox.records.schema import write_record

EXIT_OK = 0
EXIT_BUG = 1  # Python's own for an uncaught exception
EXIT_RETRY = 75  # EX_TEMPFAIL of sysexits.h
EXIT_PREEMPTED = 85
EXIT_FENCED = 98

EXIT_CODES = {
    "done": EXIT_OK,
    "stopped": EXIT_PREEMPTED,
    "fenced": EXIT_FENCED,
    "config": EXIT_FATAL,
    "diverged": EXIT_FATAL,
    "no_checkpoint": EXIT_FATAL,
    "hang": EXIT_RETRY,
    "storage": EXIT_RETRY,
    "rewind": EXIT_RETRY,
    "corrupt": EXIT_RETRY,
    "peer_failure": EXIT_RETRY,
    "out_of_memory": EXIT_RETRY,
    "bug": EXIT_BUG,
}
WITH_TRACEBACK = ("bug", "peer_failure", "out_of_memory")


class TerminateRun(Exception):
    """End this process as `exit_class`, one of EXIT_CODES, for a reason that a person can read."""

    def __init__(self, exit_class: str, reason: str) -> None:
        super().__init__(reason)
        assert exit_class in EXIT_CODES, exit_class
        self.exit_class = exit_class


@dataclass
class ExitRecord:
    """How this process will have ended. `generation` 0: it has not yet taken part in the run."""

    run: Path
    rank: int = 0
    generation: int = 0
    exit_class: str = "done"
    reason: str = ""

    @property
    def code(self) -> int:
        return EXIT_CODES[self.exit_class]

    def record(self, exit_class: str, reason: str, trace: str | None = None) -> None:
        """Set the ending and write it down, unless a newer start has written there. Never raises OSError."""
        self.exit_class = exit_class
        self.reason = reason
        if not self.generation:
            return
        path = exit_path(self.run, self.rank)
        before = read_exit(path)
        if before and before.generation > self.generation:
            return
        ending = ProcessExit(
            rank=self.rank,
            host=host(),
            code=self.code,
            exit_class=exit_class,
            reason=reason,
            time=time.time(),
            generation=self.generation,
            traceback=trace,
        )
        try:
            path.parent.mkdir(exist_ok=True)
            write_record(path, ending)
        except OSError as error:
            print_error(f"could not write {path}: {error}")


@contextmanager
def exit_guard(run: Path, verb: str) -> Iterator[ExitRecord]:
    """Turn every ending of the block into an exit code, a record, and one line of why (with a traceback if a bug).

    The process leaves at once, with and without an error: what torch and its libraries do at exit may wait for dead
    peers, or abort over a thread of gloo's (DeepSpeed keeps groups alive that were left), and then a signal would stand
    where the code is read.
    """
    end = ExitRecord(run)
    try:
        yield end
    except SystemExit:
        raise
    except BaseException as error:
        exit_class = end.exit_class if end.exit_class != "done" else classify_error(error)
        trace = traceback.format_exc() if exit_class in WITH_TRACEBACK else None
        end.record(exit_class, " ".join(str(error).split()) or type(error).__name__, trace)
        print_error(f"{trace or ''}{verb}: {error}")
    else:
        end.record(end.exit_class, end.reason)
    leave_now(end.code)


# By name: their modules import torch, which the supervisor does without.
BY_NAME = {
    "StorageUnavailable": "storage",
    "TrainingDiverged": "diverged",
    "OutOfMemoryError": "out_of_memory",
}
# Mistakes of the user: one line, no traceback. A plain ValueError is a bug: numpy and torch raise it too.
USER_MISTAKES = (UserError, ValidationError, ClickException)
# Errors of the operating system that waiting does not mend.
PERMANENT_ERRNOS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOENT,
)
# What gloo, NCCL and the rendezvous store print when a peer has died or does not answer; each was seen, or is in torch.
PEER_FAILURE_WORDS = (
    "closed by peer",
    "gloo",
    "nccl",
    "socket",
    "timed out",
    "wait timeout",
    "broken pipe",
    "connection re",
)


def classify_error(error: BaseException) -> str:
    """The exit class that an exception means."""
    if isinstance(error, TerminateRun):
        return error.exit_class
    if type(error).__name__ in BY_NAME:
        return BY_NAME[type(error).__name__]
    if isinstance(error, MemoryError):
        return "out_of_memory"
    if isinstance(error, OSError):
        return "config" if error.errno in PERMANENT_ERRNOS else "storage"
    if isinstance(error, USER_MISTAKES):
        return "config"
    if isinstance(error, RuntimeError):
        # Another rank, or the way to it, may be at fault: torch raises this class alone, only its words tell.
        text = str(error).lower()
        if any(words in text for words in PEER_FAILURE_WORDS):
            return "peer_failure"
    return "bug"


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """End the process with EXIT_RETRY if the block takes longer: for waits that nothing else ends."""

    def leave() -> None:
        print_error(f"train: {what} within {seconds:.0f} s; start again")
        leave_now(EXIT_RETRY)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def print_error(text: str) -> None:
    """Print to stderr, ignoring write errors (full disk, closed pipe)."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def leave_now(code: int) -> NoReturn:
    """End the process at once, without the exit handlers of torch and its libraries: they may wait for dead peers."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
