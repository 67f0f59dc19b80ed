"""Work spread over processes: results in the order of the items, a crash blamed on the item that caused it."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """The cores this process may use (a job's share of a machine), where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    processes: int,
    crashed: Callable[[Item], Result],
) -> Generator[Result, None, None]:
    """`work(item)` for every item, in order. At most 2 x `processes` items are under way at any time.

    `work` is a function of a module (it is pickled). A worker that dies (a codec may crash, memory may run out) breaks
    its whole pool: then the oldest item gets a process of its own, and if it dies again its result is `crashed(item)`.
    One process means no pool at all: the plain loop.
    """
    if processes == 1:
        yield from map(work, items)
        return
    crew = ProcessCrew(work, processes, crashed)
    try:
        for item in items:
            crew.add(item)
            if len(crew.waiting) >= 2 * processes:
                yield crew.oldest()
        while crew.waiting:
            yield crew.oldest()
    finally:
        crew.pool.shutdown(cancel_futures=True)


class ProcessCrew(Generic[Item, Result]):
    """A pool of processes and the items it has under way; it survives the death of its workers."""

    def __init__(
        self, work: Callable[[Item], Result], processes: int, crashed: Callable[[Item], Result]
    ):
        self.work, self.processes, self.crashed = work, processes, crashed
        self.pool = new_pool(processes)
        self.waiting: deque[tuple[Item, Future[Result]]] = deque()

    def add(self, item: Item) -> None:
        self.waiting.append((item, self.submitted(item)))

    def submitted(self, item: Item) -> "Future[Result]":
        try:
            return self.pool.submit(self.work, item)
        except BrokenProcessPool as error:  # a worker died since; the oldest item will find out
            broken: Future[Result] = Future()
            broken.set_exception(error)
            return broken

    def oldest(self) -> Result:
        """The result of the item that has waited longest."""
        item, future = self.waiting.popleft()
        try:
            return future.result()
        except BrokenProcessPool:
            self.pool.shutdown()
        result = self.alone(item)
        self.pool = new_pool(self.processes)
        self.waiting = deque(
            (other, self.kept_or_again(other, done)) for other, done in self.waiting
        )
        return result

    def alone(self, item: Item) -> Result:
        """`work(item)` in a process of its own, or `crashed(item)` if that dies too."""
        with new_pool(1) as pool:
            try:
                return pool.submit(self.work, item).result()
            except BrokenProcessPool:
                return self.crashed(item)

    def kept_or_again(self, item: Item, future: "Future[Result]") -> "Future[Result]":
        return (
            future
            if future.done() and not isinstance(future.exception(), BrokenProcessPool)
            else self.submitted(item)
        )


def new_pool(processes: int) -> ProcessPoolExecutor:
    """Fresh processes, not forks: the caller may hold threads or a GPU."""
    return ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=leave_with_parent
    )


def leave_with_parent() -> None:
    """A worker ends when its parent does, even if that was killed; ctrl-C is the parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=leave_after_parent, daemon=True).start()


def leave_after_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os._exit(1)
