"""Worker processes that read ahead: how far they are, which one hangs, and the restart after one
has died.

Every worker writes into shared memory which clip it reads. The training process looks there when a
step is late: a worker that has been at one clip for `timeout` seconds is reported with its song and
shard. After a worker died, reading restarts at the step that is due; a song over which two workers
died is replaced like any broken one.
"""

import multiprocessing
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from megajukebox.common.errors import UserError
from megajukebox.common.process_pool import limit_memory
from megajukebox.data.stream.bad_samples import StorageUnavailable

POLL_SECONDS = 5.0  # between two looks at the workers
MAX_DEATHS_PER_SONG = 2  # then the song is left out
MAX_RESTARTS = 10  # of a run's readers; after them something other than songs is wrong
PID, STEPS_READY, SONG, POSITION, SINCE_MS = range(5)  # columns of WorkerStatus


@dataclass(frozen=True)
class ReadAhead:
    """How one rank reads ahead."""

    workers: int = 0  # processes; 0: the process that trains reads by itself
    prefetch: int = 2  # steps that each worker holds ready: bounds the memory
    timeout: float = 600.0  # seconds over one clip after which a worker counts as hung
    memory: int = 4 << 30  # bytes that each worker may take beyond what it starts with


ALONE = ReadAhead()


class WorkerStatus:
    """What each worker is doing, in memory that the processes share. [workers, 5] int64."""

    def __init__(self, workers: int) -> None:
        self.rows = torch.zeros((max(1, workers), 5), dtype=torch.int64).share_memory_()

    def register(self, worker: int, pid: int) -> None:
        self.rows[worker, PID] = pid

    def start_clip(self, worker: int, position: int, song: int) -> None:
        self.rows[worker, SONG] = song
        self.rows[worker, POSITION] = position
        self.rows[worker, SINCE_MS] = int(time.monotonic() * 1000)

    def step_ready(self, worker: int) -> None:
        self.rows[worker, STEPS_READY] += 1

    def steps_ready(self) -> int:
        """Of all workers since they started."""
        return int(self.rows[:, STEPS_READY].sum())


class WorkerDied(Exception):
    """Worker processes ended while they were reading `songs`, which are none where they had not
    begun to.
    """

    def __init__(self, songs: list[int]) -> None:
        super().__init__(f"workers died over songs {songs}")
        self.songs = songs


# (first step, status, songs to leave out) -> a pipeline
PipelineFactory = Callable[[int, WorkerStatus, frozenset[int]], Any]


class PrefetchedSteps:
    """Iterates the steps of a pipeline in order, read by processes, from `first_step` on.

    `make_pipeline` builds it, `name_of(song)` gives the song's key and shard for messages.

    Raises:
        StorageUnavailable: a worker hangs; the message names worker, shard and key.
        UserError: workers keep dying.
    """

    def __init__(
        self,
        make_pipeline: PipelineFactory,
        name_of: Callable[[int], str],
        first_step: int,
        ahead: ReadAhead,
    ) -> None:
        self.make_pipeline = make_pipeline
        self.name_of = name_of
        self.ahead = ahead
        self.next_step = first_step
        self._first_step = first_step  # of the workers that run now
        self._started = time.monotonic()
        self.status = WorkerStatus(ahead.workers)
        self.deaths: Counter[int] = Counter()
        self.restarts = 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                yield from self._until_death()
                return
            except WorkerDied as death:
                self._note_death(death)

    def fill(self) -> float:
        """Share of the steps that may be ready which are: 0 means that training waits for data."""
        capacity = self.ahead.workers * self.ahead.prefetch
        ready = self.status.steps_ready() - (self.next_step - self._first_step)
        return min(1.0, max(0.0, ready / capacity)) if capacity else 0.0

    def _until_death(self) -> Iterator[Any]:
        self._first_step = self.next_step
        self._started = time.monotonic()
        self.status.rows.zero_()
        with own_child_signals():
            steps = iter(self._loader())
        while True:
            try:
                step = next(steps)
            except StopIteration:
                return
            except RuntimeError as error:
                self._check_workers(error)
                continue
            self.next_step = step.step + 1
            yield step

    def _loader(self) -> torch.utils.data.DataLoader:
        """Workers send numpy arrays: tensors would cost one open file each."""
        left_out: set[int] = set()
        for song, deaths in self.deaths.items():
            if deaths >= MAX_DEATHS_PER_SONG:
                left_out.add(song)
        options: dict[str, Any] = {}
        if self.ahead.workers:
            options = {
                "timeout": min(POLL_SECONDS, self.ahead.timeout / 4),
                "prefetch_factor": self.ahead.prefetch,
                "worker_init_fn": partial(limit_memory, self.ahead.memory),
            }
        return torch.utils.data.DataLoader(
            self.make_pipeline(self.next_step, self.status, frozenset(left_out)),
            batch_size=None,
            num_workers=self.ahead.workers,
            collate_fn=unchanged,
            # A generator of its own: the default one would draw a seed from the model's.
            generator=torch.Generator().manual_seed(0),
            **options,
        )

    def _check_workers(self, error: RuntimeError) -> None:
        """Return if the step is only late.

        Raises:
            WorkerDied: a worker has ended.
            StorageUnavailable: the worker that is due hangs.
        """
        alive = {child.pid for child in multiprocessing.active_children()}
        pids = self.status.rows[:, PID].tolist() if self.ahead.workers else []
        dead = [worker for worker, pid in enumerate(pids) if pid and pid not in alive]
        if dead:
            songs = []
            for worker in dead:
                if self.status.rows[worker, SINCE_MS]:
                    songs.append(int(self.status.rows[worker, SONG]))
            raise WorkerDied(songs) from None
        if not str(error).startswith("DataLoader timed out"):
            raise error
        worker = (self.next_step - self._first_step) % self.ahead.workers
        # Before its first clip a worker has been there since it was started.
        since = max(int(self.status.rows[worker, SINCE_MS]) / 1000, self._started)
        late = time.monotonic() - since
        if late > self.ahead.timeout:
            pid, _, song, position, _ = self.status.rows[worker].tolist()
            raise StorageUnavailable(
                f"worker {worker} (pid {pid}) has been reading {self.name_of(song)} at position {position} for "
                f"{late:.0f} s; look at the disk or server it lies on, or raise data_timeout {self.ahead.timeout:g}"
            ) from None

    def _note_death(self, death: WorkerDied) -> None:
        """Count it and warn. Raises UserError after MAX_RESTARTS."""
        self.deaths.update(death.songs)
        self.restarts += 1
        names = ", ".join(map(self.name_of, death.songs))
        when = f"while reading {names}" if names else "before it read anything"
        if self.restarts > MAX_RESTARTS:
            raise UserError(
                f"workers died {self.restarts} times, the last {when}; if the machine ran out of memory, set fewer "
                f"workers or a smaller prefetch"
            )
        warnings.warn(
            f"a worker died {when}; reading starts again at step {self.next_step}", stacklevel=2
        )


@contextmanager
def own_child_signals() -> Iterator[None]:
    """Keep torch's handler of dead children off: it raises wherever the main thread is at that
    moment.
    """
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
