"""A run as one of its processes sees it: where it lives, how it trains, who writes, and how it will have ended."""

from dataclasses import dataclass, field
from pathlib import Path

from megajukebox.common.world import World
from megajukebox.records.rewinds import Rewind, read_rewinds
from megajukebox.records.run_log import RunLog
from megajukebox.resilience.exit_codes import ExitRecord
from megajukebox.resilience.fencing import FencingToken
from megajukebox.resilience.signals import SignalHandler
from megajukebox.resilience.watchdog import HangTimeouts, Watchdog
from megajukebox.training.engines import collectives
from megajukebox.training.settings import TrainingSettings
from megajukebox.training.spike_detection import data_step, rate_share


@dataclass
class RunContext:
    """One process's view of a run. Making it is a collective: rank 0 takes the run, the others are told."""

    folder: Path
    settings: TrainingSettings
    place: World
    end: ExitRecord
    log: RunLog
    stop_after: int | None = None
    at_peak: float | None = (
        None  # seconds that a step would take at the devices' peak; None where that is not known
    )
    repeatable: bool = True  # whether losses repeat as they should on devices of one kind
    fencing_token: FencingToken = field(init=False)
    signals: SignalHandler = field(init=False)
    watchdog: Watchdog = field(init=False)
    rewinds: list[Rewind] = field(
        init=False
    )  # back: over data that made the loss spike, or to a smaller rate

    def __post_init__(self) -> None:
        self.fencing_token = collectives.broadcast_from_rank_0(
            FencingToken.acquire(self.folder) if self.rank == 0 else None
        )
        self.end.rank, self.end.generation = self.rank, self.fencing_token.number
        self.signals = SignalHandler(self.folder, self.rank, self.fencing_token)
        limits = HangTimeouts(
            self.settings.watchdog.step_timeout_seconds,
            self.settings.watchdog.phase_timeout_seconds,
        )
        self.watchdog = Watchdog(self.log, self.fencing_token, limits, self.end)
        self.watchdog.start()
        self.rewinds = collectives.broadcast_from_rank_0(
            read_rewinds(self.folder) if self.rank == 0 else None
        )

    def data_step(self, step: int) -> int:
        """Which step's clips are read at training step `step`."""
        return data_step(step, self.rewinds)

    def rate_share(self, step: int) -> float:
        """What is left of the schedule's learning rate at `step`."""
        return rate_share(step, self.rewinds)

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def ranks(self) -> int:
        return self.place.size
