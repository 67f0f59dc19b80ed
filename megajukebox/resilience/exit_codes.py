"""How a training process ends: one exit code a kind of ending, and a record of it that outlives the process.

    0  done       85  stopped on request, all saved: start again       75  temporary (hung peer, storage): start again
    93 a person is needed: starting again would not help               98  a newer generation of this run has taken over

srun returns only the highest code of its tasks, and the code of a killed task hides all others: so every rank leaves
`exits/rank-00000.json`, and who starts runs again reads those (`attempts.py`).
"""

import errno
import json
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

from megajukebox.common.files import read_record, write_atomic
from megajukebox.common.world import host

EXIT_OK, EXIT_PREEMPTED, EXIT_RETRY, EXIT_FATAL, EXIT_FENCED = 0, 85, 75, 93, 98
CODES = {
    "done": EXIT_OK,
    "stopped": EXIT_PREEMPTED,
    "fenced": EXIT_FENCED,
    "config": EXIT_FATAL,
    "diverged": EXIT_FATAL,
    "hang": EXIT_RETRY,
}
CODES |= {
    "no_checkpoint": EXIT_FATAL,
    "storage": EXIT_RETRY,
    "rewind": EXIT_RETRY,
    "corrupt": EXIT_RETRY,
    "peer": EXIT_RETRY,
    "memory": EXIT_RETRY,
    "code": 1,
}


class TerminateRun(Exception):
    """End this process as `kind`, one of CODES, for a reason in plain words."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        assert kind in CODES, kind
        self.kind = kind


@dataclass
class ExitRecord:
    """What is known of this process while it still runs. `generation` 0: it has not yet taken part in the run."""

    run: Path
    rank: int = 0
    generation: int = 0
    kind: str = "done"
    reason: str = ""

    @property
    def code(self) -> int:
        return CODES[self.kind]

    def record(self, kind: str, reason: str) -> None:
        """Note the ending and write it down, unless a newer generation has written there. Never raises OSError."""
        self.kind, self.reason = kind, reason
        if not self.generation:
            return
        path = self.run / "exits" / f"rank-{self.rank:05d}.json"
        told = {
            "rank": self.rank,
            "host": host(),
            "code": self.code,
            "class": kind,
            "reason": reason,
        }
        if read_record(path).get("generation", 0) > self.generation:
            return
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomic(
                path,
                json.dumps(told | {"time": time.time(), "generation": self.generation}).encode(),
            )
        except OSError as error:
            say(f"could not write {path}: {error}")


@contextmanager
def exit_guard(run: Path, verb: str) -> Iterator[ExitRecord]:
    """Whatever happens inside ends as an exit code, a record, and one line that says why (a traceback if it was us).

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
        kind = end.kind if end.kind != "done" else kind_of(error)
        end.record(kind, " ".join(str(error).split()) or type(error).__name__)
        say(
            (traceback.format_exc() if kind in ("code", "peer", "memory") else "")
            + f"{verb}: {error}"
        )
    else:
        end.record(end.kind, end.reason)
    leave_now(end.code)


# By name: their modules import torch, which who starts runs again (supervise.py) does without.
BY_NAME = {"StorageDown": "storage", "TrainingDiverged": "diverged", "OutOfMemoryError": "memory"}


NOT_MENDED_BY_WAITING = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOENT,
)


def kind_of(error: BaseException) -> str:
    """The kind of ending that an exception means."""
    if isinstance(error, TerminateRun):
        return error.kind
    if type(error).__name__ in BY_NAME:
        return BY_NAME[type(error).__name__]
    if isinstance(error, OSError) and error.errno in NOT_MENDED_BY_WAITING:
        return "config"
    for kind, classes in {"memory": MemoryError, "storage": OSError, "config": ValueError}.items():
        if isinstance(error, classes):
            return kind
    return "peer" if is_of_a_peer(error) else "code"


# What gloo, NCCL and the rendezvous store say when a peer has died or does not answer; each was seen, or is in torch.
OF_A_PEER = (
    "closed by peer",
    "gloo",
    "nccl",
    "socket",
    "timed out",
    "wait timeout",
    "broken pipe",
    "connection re",
)


def is_of_a_peer(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in OF_A_PEER)


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """End the process as TEMPORARY if the block takes longer: for waits that heed nothing else."""

    def leave() -> None:
        say(f"train: {what} within {seconds:.0f} s; start again")
        leave_now(EXIT_RETRY)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def say(text: str) -> None:
    """Print to stderr, if that can be written: a log on a full disk, or one that nobody reads any more, is no fault."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def leave_now(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
