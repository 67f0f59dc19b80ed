"""How many seconds of a run were spent on training steps, from the lines that it logged."""

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

ACCOUNT = "time_productive_seconds"


def number(value: object) -> float | None:
    """A finite number, or None: a metric's file may hold anything."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


class Productive:
    """Seconds of training over all attempts, line by line.

    An attempt is one process from its start to its end, `begins` the times of all starts so far; its lines carry
    `time_productive_seconds`, which begins again at 0 with every attempt. Lines of older runs have only the time of
    one step in ten: it stands for the ten.
    """

    def __init__(self, begins: list[float]) -> None:
        self.begins, self.total = begins, 0.0
        self._attempt, self._account, self._step = -1, 0.0, 0.0

    def add(self, line: Mapping[str, Any]) -> float:
        """Count a train line; returns the seconds up to it."""
        attempt = bisect_right(self.begins, number(line.get("time")) or 0.0)
        if attempt != self._attempt:
            self._attempt, self._account = attempt, 0.0
        account, step = number(line.get(ACCOUNT)), number(line.get("step"))
        if account is not None:
            self.total += max(0.0, account - self._account)
            self._account = account
        elif step is not None:
            seconds = (number(line.get("step_seconds")) or 0.0) - (
                number(line.get("data_seconds")) or 0.0
            )
            self.total += max(0.0, seconds) * max(0.0, step - self._step)
        self._step = step if step is not None else self._step
        return self.total
