"""Progress of long work: bars on a terminal, a log line now and then where there is none, nothing with --quiet.

with ProgressReporter(enabled=rank == 0) as progress:
    progress.add("songs", total=189)
    progress.advance("songs")                      # songs ━━━━━━━━ 12/189, 34 s left
    progress.advance("songs", note="loss 3.214")   # songs ━━━━━━━━ loss 3.214

for number in track(numbers, "encode", enabled=rank == 0): ...
"""

import logging
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from megajukebox.common.logging import is_quiet

log = logging.getLogger(__name__)

LOG_INTERVAL_SECONDS = 10.0  # between two lines about one task where there is no terminal

T = TypeVar("T")


@dataclass
class ProgressTask:
    """One line of progress; `start` and `start_seconds` are those of the first advance, which the speed counts from."""

    name: str
    total: int
    bar: TaskID | None
    completed: int = 0
    start: int = 0
    start_seconds: float = field(default_factory=time.monotonic)
    logged_seconds: float = field(default_factory=time.monotonic)

    def speed(self) -> float:
        """Units a second since the task began."""
        elapsed = time.monotonic() - self.start_seconds
        return (self.completed - self.start) / max(elapsed, 1e-9)

    def describe(self) -> str:
        """`12/189, 34 s left`; only the counts before anything is known of the speed."""
        counts = f"{self.completed}/{self.total}"
        speed = self.speed()
        if speed <= 0:
            return counts
        return f"{counts}, {(self.total - self.completed) / speed:.0f} s left"


class ProgressReporter:
    """Named tasks with a total each; use it as a context. The bars and lines go to stderr."""

    def __init__(
        self, enabled: bool = True, interval_seconds: float = LOG_INTERVAL_SECONDS
    ) -> None:
        self.enabled = enabled and not is_quiet()
        self.interval_seconds = interval_seconds
        self.tasks: dict[str, ProgressTask] = {}
        self._bars: Progress | None = None
        if self.enabled and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )
            self._bars = Progress(*columns, console=Console(stderr=True))

    def __enter__(self) -> "ProgressReporter":
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def add(self, name: str, total: int, completed: int = 0) -> ProgressTask:
        """Begin a task of `total` units, `completed` of which an earlier process has done."""
        bar = None
        if self._bars:
            bar = self._bars.add_task(name, total=total, completed=completed, note="")
        self.tasks[name] = ProgressTask(name, total, bar, completed, start=completed)
        return self.tasks[name]

    def advance(self, name: str, count: int = 1, note: str | None = None, detail: str = "") -> None:
        """Count `count` more units of a task.

        The text beside the bar is `12/189, 34 s left`, or `note` in its place; `detail` follows it.
        """
        task = self.tasks[name]
        task.completed += count
        if not self.enabled:
            return
        text = (task.describe() if note is None else note) + detail
        if self._bars and task.bar is not None:
            self._bars.update(task.bar, completed=task.completed, note=text)
        elif time.monotonic() >= task.logged_seconds + self.interval_seconds:
            task.logged_seconds = time.monotonic()
            log.info("%s: %s", name, text)


def track(items: Collection[T], name: str, enabled: bool = True) -> Iterator[T]:
    """The items one by one, with their progress."""
    with ProgressReporter(enabled) as progress:
        progress.add(name, total=len(items))
        for item in items:
            yield item
            progress.advance(name)
