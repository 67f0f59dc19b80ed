"""A run as one of its processes sees it: where it lives, how it trains, who writes, and how it will have ended."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from megajukebox.common.world import World
from megajukebox.records.run_log import RunLog
from megajukebox.resilience.exit_codes import Ending
from megajukebox.resilience.fencing import Generation
from megajukebox.resilience.signals import Orders
from megajukebox.resilience.watchdog import Limits, Pulse
from megajukebox.training.config import TrainingSettings
from megajukebox.training.engines import collectives
from megajukebox.training.spike_detection import Jump, data_step, rate_share


def read_jumps(folder: Path) -> list[Jump]:
    path = folder / "jumps.json"
    return [Jump(**jump) for jump in json.loads(path.read_text())] if path.exists() else []


@dataclass
class Run:
    """One process's view of a run. Making it is a collective: rank 0 takes the run, the others are told."""

    folder: Path
    settings: TrainingSettings
    place: World
    end: Ending
    log: RunLog
    stop_after: int | None = None
    at_peak: float | None = (
        None  # seconds that a step would take at the devices' peak; None where that is not known
    )
    repeatable: bool = True  # whether losses repeat as they should on devices of one kind
    generation: Generation = field(init=False)
    orders: Orders = field(init=False)
    pulse: Pulse = field(init=False)
    jumps: list[Jump] = field(
        init=False
    )  # back: over data that made the loss spike, or to a smaller rate

    def __post_init__(self) -> None:
        self.generation = collectives.from_rank_0(
            Generation.take(self.folder) if self.rank == 0 else None
        )
        self.end.rank, self.end.generation = self.rank, self.generation.number
        self.orders = Orders(self.folder, self.rank, self.generation)
        limits = Limits(self.settings.hang_seconds, self.settings.hang_slow_seconds)
        self.pulse = Pulse(self.log, self.generation, limits, self.end)
        self.pulse.start()
        self.jumps = collectives.from_rank_0(read_jumps(self.folder) if self.rank == 0 else None)

    def data_step(self, step: int) -> int:
        """Which step's clips are read at training step `step`."""
        return data_step(step, self.jumps)

    def rate_share(self, step: int) -> float:
        """What is left of the schedule's learning rate at `step`."""
        return rate_share(step, self.jumps)

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def ranks(self) -> int:
        return self.place.size
