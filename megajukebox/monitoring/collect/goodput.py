"""Where the time of a run went since its first start, over all restarts: Google's taxonomy of goodput and badput."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megajukebox.records.events import (
    AttemptEnded,
    AttemptStarted,
    CheckpointRejected,
    Event,
    NodeExcluded,
    PreflightFinished,
    RunStarted,
    SpareSwap,
    StepsRecomputed,
)
from megajukebox.records.metrics import TRAIN, phase_seconds
from megajukebox.records.phases import (
    CHECKPOINT_LOAD,
    CHECKPOINT_SAVE,
    DATA_WAIT,
    EVAL,
    INIT,
    STEP,
)
from megajukebox.records.productive_time import Productive, number

RECOMPUTE = "recompute"  # steps that were trained again
OTHER = "other"  # a process lived, and accounted for nothing
DOWN = "down"  # no process
TIME_PHASES = (
    STEP,
    DATA_WAIT,
    CHECKPOINT_SAVE,
    CHECKPOINT_LOAD,
    INIT,
    EVAL,
    RECOMPUTE,
    OTHER,
    DOWN,
)
# Written between attempts: no sign that the one before still lives.
BETWEEN_ATTEMPTS = (CheckpointRejected, AttemptEnded, PreflightFinished, NodeExcluded, SpareSwap)


@dataclass
class RunAttempt:
    """One process of the run from its start event on. `phases` are the seconds it accounted for itself."""

    start: float
    last: float = 0.0  # the latest sign of life
    phases: dict[str, float] = field(default_factory=dict)
    lost: float = 0.0  # productive seconds of steps that a later attempt trains again

    def take(self, seconds: Mapping[str, float], time: float) -> None:
        """The seconds by phase of a metrics row (cumulative within the attempt)."""
        self.last = max(self.last, time)
        for phase, spent in seconds.items():
            self.phases[phase] = max(self.phases.get(phase, 0.0), spent)


@dataclass(frozen=True)
class TimeAccount:
    """Seconds since the first start by phase; they add up to `wall`."""

    wall: float
    seconds: dict[str, float]
    useful: Sequence[tuple[float, float]]  # (time, productive seconds that were kept, up to then)
    attempts: Sequence[tuple[float, float]] = ()  # of each: its start and its last sign of life

    @property
    def goodput(self) -> float | None:
        """Share of the wall clock spent on training steps that were not lost; None before the first second."""
        return min(1.0, self.seconds[STEP] / self.wall) if self.wall > 0 else None

    def goodput_since(self, start: float) -> float | None:
        """The same for the time from `start` to the end; None if there was none."""
        if not self.useful or self.useful[-1][0] <= max(start, self.useful[0][0]):
            return None
        begin = max(start, self.useful[0][0])
        end, total = self.useful[-1]
        return min(1.0, (total - value_at(self.useful, begin)) / (end - begin))


class GoodputLedger:
    """Takes the records of a run in order and keeps its account."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.attempts: list[RunAttempt] = []
        self.reset()

    def reset(self) -> None:
        """The metrics are read again from the top (a resumed run rewrote them); the events stay."""
        self.productive = Productive(self.starts)
        self.points: list[tuple[float, float]] = []  # of every train row: time, productive seconds

    def event(self, event: Event) -> None:
        """Take the next event: a start begins an attempt, any other is a sign of life or reports lost steps."""
        if not event.time:
            return
        if isinstance(event, RunStarted) and self.attempts and not self.attempts[-1].lost:
            # Nothing of the attempt before was saved.
            self.attempts[-1].lost = self.attempts[-1].phases.get(STEP, 0.0)
        if isinstance(event, AttemptStarted) or not self.attempts:
            self._start(event.time)
        elif isinstance(event, StepsRecomputed):
            # Written just before the `resume` of the next attempt, about the one that ended.
            spent: dict[str, float] = {}
            for phase, value in event.phase_seconds.items():
                seconds = number(value)
                if seconds is not None:  # the file may hold anything
                    spent[phase] = seconds
            self.attempts[-1].take(spent, event.end_time or event.time)
            self.attempts[-1].lost += event.seconds
        elif not isinstance(event, BETWEEN_ATTEMPTS):
            self.attempts[-1].last = max(self.attempts[-1].last, event.time)

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of the metrics, in the names of today."""
        time = number(row.get("time"))
        if time is None:
            return
        if not self.attempts:
            self._start(time)
        attempt = self.attempts[max(0, bisect_right(self.starts, time) - 1)]
        attempt.take(phase_seconds(row), time)
        if row.get("split", TRAIN) == TRAIN:
            self.points.append((time, self.productive.add(row)))

    def _start(self, time: float) -> None:
        self.starts.append(time)
        self.attempts.append(RunAttempt(time, time))

    def account(self, now: float) -> TimeAccount:
        """Up to `now`: the end of the run where it has ended, the last sign of life where it is healthy."""
        if not self.attempts:
            return TimeAccount(0.0, dict.fromkeys(TIME_PHASES, 0.0), [])
        seconds: dict[str, float] = defaultdict(float, dict.fromkeys(TIME_PHASES, 0.0))
        starts = [attempt.start - attempt.phases.get(INIT, 0.0) for attempt in self.attempts]
        wall = max(0.0, now - starts[0])
        spans = []
        for attempt, start, end in zip(self.attempts, starts, [*starts[1:], now]):
            for phase, value in attempt.phases.items():
                seconds[phase] += value
            lived = min(max(attempt.last, start), end) - start
            spans.append((start, start + lived))
            seconds[OTHER] += max(0.0, lived - sum(attempt.phases.values()))
        lost = sum(attempt.lost for attempt in self.attempts)
        if seconds[STEP]:
            kept = seconds[STEP] - lost
        else:  # an older run, whose processes kept no account
            kept = self.productive.total
            seconds[OTHER] = max(0.0, seconds[OTHER] - kept - lost)
        seconds[RECOMPUTE] = lost
        seconds[STEP] = kept
        known = sum(value for phase, value in seconds.items() if phase != DOWN)
        seconds[DOWN] = max(0.0, wall - known)
        useful = [(starts[0], 0.0), *self.points, (max(now, starts[0]), kept)]
        return TimeAccount(wall, dict(seconds), useful, spans)


def value_at(points: Sequence[tuple[float, float]], time: float) -> float:
    """The value at `time`, in proportion between the points around it."""
    index = bisect_right(points, (time, float("inf")))
    t0, v0 = points[max(0, index - 1)]
    t1, v1 = points[min(index, len(points) - 1)]
    if t1 <= t0:
        return v0
    return v0 + (v1 - v0) * min(1.0, (time - t0) / (t1 - t0))
