"""Worker processes that read ahead: how far they are, which one hangs, and going on after one has died.

Every worker notes on a shared board what it is wanted. The process that trains looks there when a step does not come:
a worker that has been at one clip for `timeout` seconds is named with its song and shard; after one that died the
reading starts again at the step that is due, and a song over which two workers died is replaced like any broken one.
"""

import multiprocessing
import resource
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from megajukebox.data.stream.bad_samples import StorageUnavailable

TICK = 5.0  # seconds between two looks at the workers
DEATHS = 2  # over the same song, until it is left out
RESTARTS = 10  # of a run's readers; after them something other than songs is wrong
PID, MADE, SONG, POSITION, SINCE = range(5)


@dataclass(frozen=True)
class ReadAhead:
    """How one rank reads ahead."""

    workers: int = 0  # processes; 0: the process that trains reads by itself
    prefetch: int = 2  # steps that each worker holds ready: bounds the memory
    timeout: float = 600.0  # seconds over one clip after which a worker counts as hung
    memory: int = 4 << 30  # bytes that each worker may take beyond what it starts with


ALONE = ReadAhead()


def limit_memory(more: int, worker: int = 0) -> None:
    """This process may take `more` bytes than now; a file that asks for more is then a MemoryError, and skipped.

    Without it one file that promises terabytes (a "bomb") could end every process of the machine. Only where /proc is.
    """
    taken = Path("/proc/self/statm")
    if taken.exists():
        bytes_then = int(taken.read_text().split()[0]) * resource.getpagesize() + more
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = bytes_then if most == resource.RLIM_INFINITY else min(bytes_then, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class WorkerStatus:
    """What each worker is doing, in memory that the processes share. [workers, 5] int64."""

    def __init__(self, workers: int) -> None:
        self.rows = torch.zeros((max(1, workers), 5), dtype=torch.int64).share_memory_()

    def begin(self, worker: int, pid: int) -> None:
        self.rows[worker, PID] = pid

    def note(self, worker: int, position: int, song: int) -> None:
        self.rows[worker, SONG], self.rows[worker, POSITION] = song, position
        self.rows[worker, SINCE] = int(time.monotonic() * 1000)

    def made(self, worker: int) -> None:
        """One more step is ready."""
        self.rows[worker, MADE] += 1

    def all_made(self) -> int:
        return int(self.rows[:, MADE].sum())

    def seconds_since(self, worker: int) -> float:
        """How long a worker has been at its clip; before its first clip, since the machine started."""
        return time.monotonic() - int(self.rows[worker, SINCE]) / 1000


class WorkerDied(Exception):
    """Worker processes ended while they were reading `songs`, which are none where they had not begun to."""

    def __init__(self, songs: list[int]) -> None:
        super().__init__(f"workers died over songs {songs}")
        self.songs = songs


Make = Callable[
    [int, WorkerStatus, frozenset[int]], Any
]  # (first step, board, songs to leave out) -> a pipeline


class PrefetchedSteps:
    """Iterates the steps of a pipeline in order, read by processes, from `first_step` on.

    `make` builds the pipeline, `name_of(song)` says its shard and key. StorageDown, naming worker, shard and key, when
    a worker hangs; ValueError when workers keep dying.
    """

    def __init__(
        self, make: Make, name_of: Callable[[int], str], first_step: int, ahead: ReadAhead
    ) -> None:
        self.make, self.name_of, self.ahead = make, name_of, ahead
        self.next_step = self._first_step = first_step
        self.board = WorkerStatus(ahead.workers)
        self.deaths: Counter[int] = Counter()
        self.restarts = 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                yield from self._until_death()
                return
            except WorkerDied as death:
                self._survive(death)

    def fill(self) -> float:
        """Share of the steps that may be ready which are: 0 means that training waits for data."""
        room = self.ahead.workers * self.ahead.prefetch
        ready = self.board.all_made() - (self.next_step - self._first_step)
        return min(1.0, max(0.0, ready / room)) if room else 0.0

    def _until_death(self) -> Iterator[Any]:
        self._first_step, self._started = self.next_step, time.monotonic()
        self.board.rows.zero_()
        with own_child_signals():
            made = iter(self._loader())
        while True:
            try:
                step = next(made)
            except StopIteration:
                return
            except RuntimeError as error:
                self._look_at_workers(error)
                continue
            self.next_step = step.step + 1
            yield step

    def _loader(self) -> torch.utils.data.DataLoader:
        """Workers send numpy arrays: tensors would cost one open file each."""
        left_out = frozenset(song for song, deaths in self.deaths.items() if deaths >= DEATHS)
        pipeline, wanted = self.make(self.next_step, self.board, left_out), self.ahead
        options: dict[str, Any] = {}
        if wanted.workers:
            options = {
                "timeout": min(TICK, wanted.timeout / 4),
                "prefetch_factor": wanted.prefetch,
                "worker_init_fn": partial(limit_memory, wanted.memory),
            }
        # A generator of its own: the default one would draw a seed from the model's.
        private = torch.Generator().manual_seed(0)
        return torch.utils.data.DataLoader(
            pipeline,
            batch_size=None,
            num_workers=wanted.workers,
            collate_fn=unchanged,
            generator=private,
            **options,
        )

    def _look_at_workers(self, error: RuntimeError) -> None:
        """Returns if the step is only late; otherwise raises what is wrong."""
        if dead := self._dead():
            reading = [worker for worker in dead if self.board.rows[worker, SINCE]]
            raise WorkerDied([int(self.board.rows[worker, SONG]) for worker in reading]) from None
        if not str(error).startswith("DataLoader timed out"):
            raise error
        worker = (self.next_step - self._first_step) % self.ahead.workers
        late = min(self.board.seconds_since(worker), time.monotonic() - self._started)
        if late > self.ahead.timeout:
            pid, _, song, position, _ = self.board.rows[worker].tolist()
            raise StorageUnavailable(
                f"worker {worker} (pid {pid}) has been reading {self.name_of(song)} at position {position} for "
                f"{late:.0f} s; look at the disk or server it lies on, or raise data_timeout {self.ahead.timeout:g}"
            ) from None

    def _dead(self) -> list[int]:
        alive = {child.pid for child in multiprocessing.active_children()}
        pids = self.board.rows[:, PID].tolist()
        return (
            [worker for worker, pid in enumerate(pids) if pid and pid not in alive]
            if self.ahead.workers
            else []
        )

    def _survive(self, death: WorkerDied) -> None:
        self.deaths.update(death.songs)
        self.restarts += 1
        names = ", ".join(self.name_of(song) for song in death.songs)
        when = f"while reading {names}" if names else "before it read anything"
        if self.restarts > RESTARTS:
            raise ValueError(
                f"workers died {self.restarts} times, the last {when}; if the machine ran out of memory, set fewer "
                f"workers or a smaller prefetch"
            )
        warnings.warn(
            f"a worker died {when}; reading starts again at step {self.next_step}", stacklevel=2
        )


@contextmanager
def own_child_signals() -> Iterator[None]:
    """torch answers a worker's death with an exception wherever the main thread is at that moment; here it may not."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def unchanged(item: Any) -> Any:
    return item
