"""How long a rank works by itself between two meetings with the others: what tells a slow rank from those that wait."""

import time

import torch


class Stopwatch:
    """Seconds from each `start` to the first `stop` after it, summed since `clear`.

    On a GPU its own events take the time, and `seconds` reads them: call it after a synchronisation that is there
    anyway, and no other is added.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clear()

    def clear(self) -> None:
        self._laps: list[tuple[float | torch.cuda.Event, float | torch.cuda.Event]] = []
        self._begun: float | torch.cuda.Event | None = None

    def start(self) -> None:
        self._begun = self._now()

    def stop(self) -> None:
        if self._begun is not None:
            self._laps.append((self._begun, self._now()))
        self._begun = None

    def _now(self) -> float | torch.cuda.Event:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> float:
        return sum(_between(begin, end) for begin, end in self._laps)


def _between(begin: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(begin, float) and isinstance(end, float):
        return end - begin
    return begin.elapsed_time(end) / 1000  # type: ignore[union-attr, arg-type]
