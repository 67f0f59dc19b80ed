"""How long something frequent takes, on a CPU's clock or a GPU's, without ever waiting for the
GPU.
"""

import time
from dataclasses import dataclass, field

import torch


@dataclass(eq=False)
class Stopwatch:
    """Adds up laps, each from a `now()` to the `lap()` that is given it.

    On a GPU its own events take the time. They are read only once the GPU has passed them: laps it
    has not finished when `take` is called are counted in the next call, so no synchronisation is
    added.
    """

    device: torch.device
    _laps: list[tuple[float | torch.cuda.Event, float | torch.cuda.Event]] = field(
        default_factory=list
    )

    def now(self) -> float | torch.cuda.Event:
        """The moment at which a lap begins: seconds on a CPU's clock, or an event of the GPU."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def lap(self, begun: float | torch.cuda.Event) -> None:
        """End the lap that began at `begun`."""
        self._laps.append((begun, self.now()))

    def take(self) -> float:
        """Seconds of the laps that ended since the last call."""
        seconds = 0.0
        ended = 0
        for begin, end in self._laps:
            if isinstance(begin, float) and isinstance(end, float):
                seconds += end - begin
            elif end.query():  # type: ignore[union-attr]
                seconds += begin.elapsed_time(end) / 1000  # type: ignore[union-attr, arg-type]
            else:
                break
            ended += 1
        del self._laps[:ended]
        return seconds
