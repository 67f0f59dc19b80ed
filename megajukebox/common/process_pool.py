"""Work spread over processes: results in the order of the items, a crash blamed on the item that
caused it.
"""

import multiprocessing
import os
import resource
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from megajukebox.common.child_processes import without_secrets

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """The cores this process may use (a job's share of a machine), where the system reports them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    processes: int,
    crashed: Callable[[Item], Result],
    memory: int | None = None,
) -> Generator[Result, None, None]:
    """`work(item)` for every item, in order. At most 2 x `processes` items are under way at any
    time.

    `work` is a function of a module (it is pickled). A worker that dies (a codec may crash, memory
    may run out) breaks its whole pool: then the oldest item gets a process of its own, and if it
    dies again its result is `crashed(item)`. Workers see no secret of this process's environment.
    One process means no pool at all: the plain loop, within the same limit of memory.

    Args:
        memory: bytes that each item may take beyond what its process starts with; more raises
            MemoryError.
    """
    if processes == 1:
        for item in items:
            with limited_memory(memory):
                result = work(item)
            yield result
        return
    pool = ResilientPool(work, processes, crashed, memory)
    try:
        for item in items:
            pool.add(item)
            if len(pool.waiting) >= 2 * processes:
                yield pool.oldest()
        while pool.waiting:
            yield pool.oldest()
    finally:
        pool.executor.shutdown(cancel_futures=True)


class ResilientPool(Generic[Item, Result]):
    """A pool of processes and the items it has under way; it survives the death of its workers."""

    def __init__(
        self,
        work: Callable[[Item], Result],
        processes: int,
        crashed: Callable[[Item], Result],
        memory: int | None = None,
    ):
        self.work = work
        self.processes = processes
        self.crashed = crashed
        self.memory = memory
        self.executor = new_pool(processes, memory)
        self.waiting: deque[tuple[Item, Future[Result]]] = deque()

    def add(self, item: Item) -> None:
        """Start `work(item)`."""
        try:
            with without_secrets():  # a worker is started when the first item comes for it
                future = self.executor.submit(self.work, item)
        except BrokenProcessPool as error:  # a worker died since; the oldest item will find out
            future = Future()
            future.set_exception(error)
        self.waiting.append((item, future))

    def oldest(self) -> Result:
        """The result of the item that has waited longest."""
        item, future = self.waiting.popleft()
        try:
            return future.result()
        except BrokenProcessPool:
            self.executor.shutdown()
        with new_pool(
            1, self.memory
        ) as own:  # a process of its own: if that dies too, this item kills it
            try:
                with without_secrets():
                    alone = own.submit(self.work, item)
                result = alone.result()
            except BrokenProcessPool:
                result = self.crashed(item)
        self.executor = new_pool(self.processes, self.memory)
        waiting = self.waiting
        self.waiting = deque()
        for other, done in waiting:
            if done.done() and not isinstance(done.exception(), BrokenProcessPool):
                self.waiting.append((other, done))
            else:
                self.add(other)
        return result


def new_pool(processes: int, memory: int | None = None) -> ProcessPoolExecutor:
    """Fresh processes, not forks: the caller may hold threads or a GPU."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, spawn, initializer=start_worker, initargs=(memory,))


def start_worker(memory: int | None) -> None:
    """End this worker when its parent does, even if that was killed; only the parent handles
    ctrl-C.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=exit_after_parent, daemon=True).start()
    if memory is not None:
        limit_memory(memory)


def limit_memory(extra_bytes: int, worker: int = 0, hard: bool = True) -> None:
    """Let this process take `extra_bytes` more than now; what asks for more raises MemoryError.

    Without it one file that promises terabytes (a "bomb") could end every process of the machine.
    Only where /proc is. A DataLoader names its `worker`, which does not matter. Without `hard` the limit can be lifted.
    """
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return
    limit = int(statm.read_text().split()[0]) * resource.getpagesize() + extra_bytes
    _, hard_limit = resource.getrlimit(resource.RLIMIT_AS)
    if hard_limit != resource.RLIM_INFINITY:
        limit = min(limit, hard_limit)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit if hard else hard_limit))


@contextmanager
def limited_memory(extra_bytes: int | None) -> Iterator[None]:
    """`limit_memory` while something runs in this process itself; None: no limit."""
    if extra_bytes is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit_memory(extra_bytes, hard=False)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def exit_after_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os._exit(1)
