"""How many seconds of a run were spent on training steps, from the lines that it logged."""

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

ACCOUNT = "time_step_seconds"


def number(value: object) -> float | None:
    """A finite number, or None: a metric's file may hold anything."""
    if type(value) is float:  # nearly always: a run's metrics hold millions
        return value if math.isfinite(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


class Productive:
    """Seconds of training over all attempts, line by line.

    An attempt is one process from its start to its end, `begins` the times of all starts so far; its lines carry
    `time_step_seconds`, which begins again at 0 with every attempt. Lines of older runs have only the time of
    one step in ten: it stands for the ten.
    """

    def __init__(self, begins: list[float]) -> None:
        self.begins = begins
        self.total = 0.0
        self._attempt = -1
        self._account = 0.0
        self._step = 0.0

    def add(self, line: Mapping[str, Any]) -> float:
        """Count a train line, in the names of today; returns the seconds up to it."""
        attempt = bisect_right(self.begins, number(line.get("time")) or 0.0)
        if attempt != self._attempt:
            self._attempt = attempt
            self._account = 0.0
        account = number(line.get(ACCOUNT))
        step = number(line.get("step"))
        if account is not None:
            self.total += max(0.0, account - self._account)
            self._account = account
        elif step is not None:
            whole = number(line.get("step_seconds")) or 0.0
            waited = number(line.get("data_seconds")) or 0.0
            self.total += max(0.0, whole - waited) * max(0.0, step - self._step)
        if step is not None:
            self._step = step
        return self.total


def seconds_at(points: list[tuple[int, float]], step: int) -> float:
    """Productive seconds up to `step`, in proportion between the two logged steps around it."""
    before = max((p for p in points if p[0] <= step), default=(0, 0.0))
    after = min((p for p in points if p[0] > step), default=before)
    share = (step - before[0]) / (after[0] - before[0]) if after[0] > before[0] else 0.0
    return before[1] + share * (after[1] - before[1])
