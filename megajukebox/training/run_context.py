"""A run as one of its processes sees it: its folder, settings, log, and the guards that may end it."""

from dataclasses import asdict, dataclass, field
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


@dataclass
class RunContext:
    """One process's view of a run. Creating it is a collective: rank 0 acquires the run for all."""

    folder: Path
    settings: TrainingSettings
    world: World
    end: ExitRecord
    log: RunLog
    stop_after: int | None = None
    seconds_at_peak: float | None = None  # of a step at the devices' peak; None: not known
    is_deterministic: bool = True  # False once a loss did not repeat on devices of one kind
    fencing_token: FencingToken = field(init=False)
    signals: SignalHandler = field(init=False)
    watchdog: Watchdog = field(init=False)
    rewinds: list[Rewind] = field(init=False)  # past a spike, or to a smaller learning rate

    def __post_init__(self) -> None:
        acquired = None
        if self.rank == 0:
            token = FencingToken.acquire(self.folder)
            acquired = [token.number, token.token]
        self.fencing_token = FencingToken(self.folder, *collectives.broadcast_from_rank_0(acquired))
        self.end.rank = self.rank
        self.end.generation = self.fencing_token.number
        self.signals = SignalHandler(self.folder, self.rank, self.fencing_token)
        timeouts = HangTimeouts(
            self.settings.watchdog.step_timeout_seconds,
            self.settings.watchdog.phase_timeout_seconds,
        )
        self.watchdog = Watchdog(
            self.log,
            self.fencing_token,
            timeouts,
            self.end,
            flight_record=collectives.flight_record,
        )
        self.watchdog.start()
        rewinds = list(map(asdict, read_rewinds(self.folder))) if self.rank == 0 else None
        shared = collectives.broadcast_from_rank_0(rewinds)
        self.rewinds = [Rewind(**rewind) for rewind in shared]

    @property
    def rank(self) -> int:
        return self.world.rank

    @property
    def ranks(self) -> int:
        return self.world.size
