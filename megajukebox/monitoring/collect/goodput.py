"""Where the time of a run went since its first start, over all restarts: Google's taxonomy of good and bad put."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from megajukebox.records.productive_time import Productive, number

PHASES = (
    "productive", "data_wait", "ckpt_save", "ckpt_restore", "init", "eval", "recompute", "other", "down",
)  # fmt: skip


@dataclass
class RunAttempt:
    """One process of the run from its start event on. `phases` are the seconds it accounted for itself."""

    began: float
    last: float = 0.0  # the latest sign of life
    phases: dict[str, float] = field(default_factory=dict)
    lost: float = 0.0  # productive seconds of steps that a later attempt trains again

    def take(self, line: dict[str, Any], time: float) -> None:
        """The account of a metrics line (cumulative within the attempt)."""
        self.last = max(self.last, time)
        for name, value in line.items():
            seconds = number(value)
            if name.startswith("time_") and name.endswith("_seconds") and seconds is not None:
                phase = name.removeprefix("time_").removesuffix("_seconds")
                self.phases[phase] = max(self.phases.get(phase, 0.0), seconds)


@dataclass(frozen=True)
class TimeAccount:
    """Seconds since the first start by phase; they add up to `wall`."""

    wall: float
    seconds: dict[str, float]
    useful: Sequence[tuple[float, float]]  # (time, productive seconds that were kept, up to then)
    attempts: Sequence[
        tuple[float, float]
    ] = ()  # of each: when it began, and its last sign of life

    @property
    def goodput(self) -> float | None:
        """Share of the wall clock spent on training steps that were not lost; None before the first second."""
        return min(1.0, self.seconds["productive"] / self.wall) if self.wall > 0 else None

    def goodput_since(self, start: float) -> float | None:
        """The same for the time from `start` to the end; None if there was none."""
        if not self.useful or self.useful[-1][0] <= max(start, self.useful[0][0]):
            return None
        begin = max(start, self.useful[0][0])
        end, total = self.useful[-1]
        return min(1.0, (total - at(self.useful, begin)) / (end - begin))


class GoodputLedger:
    """Takes the lines of a run in order and keeps its account. Used by whoever reads run folders."""

    def __init__(self) -> None:
        self.begins: list[float] = []
        self.attempts: list[RunAttempt] = []
        self.reset()

    def reset(self) -> None:
        """The metrics are read again from the top (a resumed run rewrote them); the events stay."""
        self.made = Productive(self.begins)
        self.points: list[
            tuple[float, float]
        ] = []  # of every train line: its time, productive seconds up to it

    def event(self, event: dict[str, Any]) -> None:
        time = number(event.get("time"))
        if time is None:
            return
        if event.get("event") == "start" and self.attempts and not self.attempts[-1].lost:
            self.attempts[-1].lost = self.attempts[-1].phases.get(
                "productive", 0.0
            )  # nothing of it was saved
        if event.get("event") in ("start", "resume") or not self.attempts:
            self.begins.append(time)
            self.attempts.append(RunAttempt(time, time))
        elif event.get("event") == "forget":
            # Written just before the `resume` of the next attempt, about the one that ended.
            until = number(event.get("until")) or time
            account = event.get("account")
            self.attempts[-1].take(account if isinstance(account, dict) else {}, until)
            self.attempts[-1].lost += number(event.get("seconds")) or 0.0
        elif event.get("event") not in (
            "reject",
            "attempt_end",
            "preflight",
            "exclude_node",
            "spare",
        ):
            self.attempts[-1].last = max(self.attempts[-1].last, time)

    def line(self, line: dict[str, Any]) -> None:
        time = number(line.get("time"))
        if time is None:
            return
        attempt = self.attempt_at(time)
        attempt.take(line, time)
        if line.get("split", "train") == "train":
            self.points.append((time, self.made.add(line)))

    def attempt_at(self, time: float) -> RunAttempt:
        if not self.attempts:
            self.begins.append(time)
            self.attempts.append(RunAttempt(time, time))
        return self.attempts[max(0, bisect_right(self.begins, time) - 1)]

    def account(self, now: float) -> TimeAccount:
        """Up to `now`: the end of the run where it has ended, the last sign of life where it is healthy."""
        if not self.attempts:
            return TimeAccount(0.0, dict.fromkeys(PHASES, 0.0), [])
        seconds: dict[str, float] = defaultdict(float, dict.fromkeys(PHASES, 0.0))
        begins = [attempt.began - attempt.phases.get("init", 0.0) for attempt in self.attempts]
        wall = max(0.0, now - begins[0])
        spans = []
        for attempt, began, until in zip(self.attempts, begins, [*begins[1:], now]):
            for phase, value in attempt.phases.items():
                seconds[phase] += value
            lived = min(max(attempt.last, began), until) - began
            spans.append((began, began + lived))
            seconds["other"] += max(0.0, lived - sum(attempt.phases.values()))
        lost = sum(attempt.lost for attempt in self.attempts)
        kept = seconds["productive"] - lost if seconds["productive"] else self.made.total
        if not seconds["productive"]:  # an older run, whose processes kept no account
            seconds["other"] = max(0.0, seconds["other"] - kept - lost)
        seconds |= {"recompute": lost, "productive": kept}
        known = sum(value for phase, value in seconds.items() if phase != "down")
        seconds["down"] = max(0.0, wall - known)
        useful = [(begins[0], 0.0), *self.points, (max(now, begins[0]), kept)]
        return TimeAccount(wall, dict(seconds), useful, spans)


def at(points: Sequence[tuple[float, float]], time: float) -> float:
    """The value at `time`, in proportion between the points around it."""
    index = bisect_right(points, (time, float("inf")))
    (t0, v0), (t1, v1) = points[max(0, index - 1)], points[min(index, len(points) - 1)]
    return v0 + (v1 - v0) * min(1.0, (time - t0) / (t1 - t0)) if t1 > t0 else v0
