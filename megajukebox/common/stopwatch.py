"""How long something takes that happens often, on a CPU's clock or a GPU's, without ever waiting for the GPU."""

import time

import torch


class Stopwatch:
    """Adds up laps, each from a `now()` to the `lap()` that is given it.

    On a GPU its own events take the time. They are read only once the GPU has passed them: what it has not reached
    when `take` is called is told the next time, so no synchronisation is added.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._laps: list[tuple[float | torch.cuda.Event, float | torch.cuda.Event]] = []

    def now(self) -> float | torch.cuda.Event:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def lap(self, begun: float | torch.cuda.Event) -> None:
        self._laps.append((begun, self.now()))

    def take(self) -> float:
        """Seconds of the laps that ended since the last call."""
        count = next(
            (n for n, (_, end) in enumerate(self._laps) if not _passed(end)), len(self._laps)
        )
        over, self._laps = self._laps[:count], self._laps[count:]
        return sum(_between(begin, end) for begin, end in over)


def _passed(end: float | torch.cuda.Event) -> bool:
    return isinstance(end, float) or end.query()


def _between(begin: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(begin, float) and isinstance(end, float):
        return end - begin
    return begin.elapsed_time(end) / 1000  # type: ignore[union-attr, arg-type]
