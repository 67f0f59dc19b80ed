"""What is known of a run at one moment, and what follows from it: status, speed, time left, slow and silent ranks."""

import hashlib
import json
import signal
import statistics
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megajukebox.common.old_settings import upgrade_stage
from megajukebox.monitoring.collect.goodput import TimeAccount
from megajukebox.monitoring.collect.histogram import Histogram, percentile, skip_kind, spike_score
from megajukebox.monitoring.collect.host import Disk
from megajukebox.monitoring.collect.job_chain import JobChain
from megajukebox.monitoring.collect.stragglers import RankHealth, slowdowns
from megajukebox.records.productive_time import number

STARTS = ("start", "resume")
ENDS = ("done", "stop", "diverged")
NEEDS_A_PERSON = 93  # exit code of training that must not be started again as it is


@dataclass(frozen=True)
class AlertThresholds:
    """Seconds after which silence means something."""

    stall: float = 120.0  # the least time without a step that counts as stalled; five slow steps if that is longer
    silent: float = 60.0  # a heartbeat older than this is missed
    checkpoint: float = 300.0  # the least age at which a checkpoint counts as stale; three intervals if that is longer
    down: float = 900.0  # a run with no process for so long is nobody's plan


@dataclass(frozen=True)
class CheckpointInfo:
    step: int
    time: float
    bytes: int
    whole: bool  # every file of its manifest is there, with its size


@dataclass(frozen=True)
class RunState:
    """All that is known of a run at `now`."""

    name: str
    folder: Path
    now: float
    limits: AlertThresholds
    settings: dict[str, Any]
    recent: list[dict[str, Any]]  # the last train lines
    held_out: dict[str, Any]
    events: list[dict[str, Any]]  # the last, without skipped clips
    counts: Counter[str]  # of events by name
    bad_samples: Counter[str]  # clips replaced, by kind
    skipped_steps: Counter[str]
    restarts: Counter[str]
    rejects: int
    ranks: list[RankHealth]
    exits: list[dict[str, Any]]
    checkpoints: list[CheckpointInfo]
    account: TimeAccount
    flags: frozenset[str]  # of DONE, STOP, SAVE
    disk: Disk
    wasted_steps: int
    unreadable: int
    seconds_seen: dict[str, Histogram] = field(default_factory=dict)
    chain: JobChain | None = None  # of jobs, under SLURM

    @property
    def last(self) -> dict[str, Any]:
        return self.recent[-1] if self.recent else {}

    def value(self, name: str) -> float | None:
        """The last train value of a metric."""
        return number(self.last.get(name))

    @property
    def stage(self) -> str:
        return str(self.settings.get("stage", ""))

    @property
    def training(self) -> dict[str, Any]:
        """The stage's settings in its preset, in the present keys."""
        stages = (self.settings.get("preset") or {}).get("training") or {}
        found = stages.get(self.stage) if isinstance(stages, dict) else None
        return upgrade_stage(found)

    @property
    def checkpoint_every(self) -> float | None:
        """Steps between two checkpoints."""
        checkpointing = self.training.get("checkpointing")
        return number(checkpointing.get("every")) if isinstance(checkpointing, dict) else None

    @property
    def step(self) -> int:
        """The last step heard of, from the metrics or a heartbeat."""
        beats = [rank.step for rank in self.ranks]
        logged = number(self.last.get("step")) or 0.0
        if not self.recent and self.checkpoints:
            logged = self.checkpoints[-1].step
        return int(max([logged, *beats]))

    @property
    def target(self) -> int | None:
        steps = number(self.training.get("steps"))
        return int(steps) if steps else None

    @property
    def step_seconds(self) -> float | None:
        """The median of the last steps that were logged."""
        seconds = self.lately("step_seconds")
        return statistics.median(seconds) if seconds else None

    def lately(self, name: str) -> list[float]:
        return [
            value for value in (number(line.get(name)) for line in self.recent) if value is not None
        ]

    @property
    def heartbeat(self) -> float | None:
        return max((rank.time for rank in self.ranks), default=None)

    @property
    def last_seen(self) -> float | None:
        """The last sign of life of any kind."""
        times = [number(r.get("time")) for r in (self.last, self.events[-1] if self.events else {})]
        return max([t for t in (*times, self.heartbeat) if t is not None], default=None)

    @property
    def last_step_time(self) -> float | None:
        """When the last step was made: a logged one, or one that a heartbeat tells of."""
        logged = number(self.last.get("time"))
        since = [
            rank.section_since
            for rank in self.ranks
            if rank.step >= (number(self.last.get("step")) or 0)
        ]
        attempt = self.began
        return max([t for t in (logged, attempt, *since) if t is not None], default=None)

    @property
    def began(self) -> float | None:
        """When the present attempt began."""
        starts = [
            number(e.get("time")) for e in self.events if e.get("event") in ("start", "resume")
        ]
        return next((t for t in reversed(starts) if t is not None), None)

    @property
    def stall_after(self) -> float:
        """Seconds without a step that are too many: five times a slow one (p95), and not less than the limit."""
        slow = percentile(self.lately("step_seconds"), 0.95) or 0.0
        lines = 1.0 if self.ranks else (number(self.training.get("log_every")) or 1.0)
        return max(self.limits.stall, 5 * slow * lines)

    @property
    def ended(self) -> str | None:
        """The event that ended the run, if no start came after it."""
        if "DONE" in self.flags:
            return "done"
        last = next(
            (str(e["event"]) for e in reversed(self.events) if e.get("event") in (*ENDS, *STARTS)),
            None,
        )
        return last if last in ENDS else None

    @property
    def wanted(self) -> bool:
        """Whether somebody would have it go on: not where a person asked it to stop."""
        stop: dict[str, Any] = next(
            (e for e in reversed(self.events) if e.get("event") == "stop"), {}
        )
        asked = (
            "STOP" in self.flags or stop.get("stop_after") or stop.get("signal") == signal.SIGINT
        )
        return not (self.ended == "stop" and asked)

    @property
    def alive(self) -> bool:
        """Whether some process of it was heard of lately."""
        if self.ended:
            return False
        if self.ranks:
            return self.now - (self.heartbeat or 0.0) <= self.limits.silent
        return self.last_seen is not None and self.now - self.last_seen <= self.stall_after

    @property
    def exit_code(self) -> int | None:
        """The worst code of the last processes that ended, if they are the last thing that happened."""
        fresh = [e for e in self.exits if (number(e.get("time")) or 0.0) >= (self.began or 0.0)]
        codes = [int(code) for code in (number(e.get("code")) for e in fresh) if code is not None]
        return max(codes, key=lambda code: (code == NEEDS_A_PERSON, code), default=None)

    @property
    def status(self) -> str:
        """One word: done, stopped, failed, waiting, down, starting, stalled, training, or new."""
        if self.ended == "done":
            return "done"
        if self.events and self.events[-1].get("person"):  # the supervisor will not start it again
            return "failed"
        if not self.alive:
            return self._status_of_the_dead()
        if self.now - (self.last_step_time or self.now) > self.stall_after:
            return "stalled"
        return (
            "training"
            if self.recent and (number(self.last.get("time")) or 0) >= (self.began or 0)
            else "starting"
        )

    def _status_of_the_dead(self) -> str:
        if self.exit_code == NEEDS_A_PERSON or self.ended == "diverged":
            return "failed"
        if not self.wanted:
            return "stopped"
        if self.last_seen is None:
            return "new"
        return "down" if self.now - self.last_seen > self.limits.down else "waiting"

    @property
    def eta_seconds(self) -> float | None:
        """Training time that is left at the present speed, waits for data included."""
        if self.target is None or self.step_seconds is None or self.status in ("done", "failed"):
            return None
        return max(0, self.target - self.step) * self.step_seconds

    @property
    def chain_seconds(self) -> float | None:
        """What the present job and those queued after it may still take; None outside a chain of jobs."""
        return self.chain.seconds(self.now) if self.chain and self.alive else None

    @property
    def spike_score(self) -> float | None:
        """The worst of the last ten logged losses, in standard deviations above those before it.

        Of ten, since a spike may be over before anybody looks. None with fewer than 9 losses.
        """
        losses = self.lately("loss")
        scores = [
            spike_score(losses[:end]) for end in range(max(0, len(losses) - 9), len(losses) + 1)
        ]
        return max((score for score in scores if score is not None), default=None)

    @property
    def slowdowns(self) -> dict[int, float]:
        return slowdowns(self.ranks)

    @property
    def silent_ranks(self) -> list[RankHealth]:
        """Ranks whose heartbeat stopped while others still beat."""
        if not self.alive or self.ended:
            return []
        return [
            rank for rank in self.ranks if (self.heartbeat or 0.0) - rank.time > self.limits.silent
        ]

    @property
    def bad_share(self) -> float | None:
        """Share of the clips of this attempt that rank 0 could not read."""
        bad, batch = self.value("skipped"), self.clips_per_step
        if bad is None or not batch or self.began is None:
            return None
        first = next(
            (
                number(e.get("step"))
                for e in reversed(self.events)
                if e.get("event") in ("start", "resume")
            ),
            0,
        )
        clips = (self.step - (first or 0.0)) * batch
        return min(1.0, bad / clips) if clips > 0 else None

    @property
    def clips_per_step(self) -> float | None:
        config = self.settings.get("ds_config")
        if not isinstance(config, dict):
            return None
        micro = number(config.get("train_micro_batch_size_per_gpu"))
        return micro * (number(config.get("gradient_accumulation_steps")) or 1.0) if micro else None

    @property
    def save_interval(self) -> float | None:
        """Seconds between checkpoints, as the settings and the present speed say."""
        every, seconds = self.checkpoint_every, self.step_seconds
        return every * seconds if every and seconds else None

    @property
    def checkpoint_due(self) -> float | None:
        """When the newest whole checkpoint becomes stale: three intervals (not less than the limit) after it was made,
        or after the present attempt began.
        """
        whole = [checkpoint.time for checkpoint in self.checkpoints if checkpoint.whole]
        if self.save_interval is None or not whole:
            return None
        return max(whole[-1], self.began or 0.0) + max(
            self.limits.checkpoint, 3 * self.save_interval
        )

    @property
    def data_wait(self) -> float | None:
        """Share of the last ten logged steps spent waiting for data."""
        lines = self.recent[-10:]
        waited = [number(line.get("data_seconds")) for line in lines]
        seconds = [number(line.get("step_seconds")) for line in lines]
        total = sum(s or 0.0 for s in seconds)
        return sum(w or 0.0 for w in waited) / total if total and None not in waited else None

    def lately_skipped(self, kind: str, steps: int = 100) -> int:
        """Steps left out for that reason among the last `steps`."""
        skipped = [e for e in self.events if e.get("event") == "skip_step" and skip_kind(e) == kind]
        return sum((number(e.get("step")) or 0.0) > self.step - steps for e in skipped)

    @property
    def config_digest(self) -> str:
        """The same for two runs of the same settings."""
        about = {name: value for name, value in self.settings.items() if name != "made_by"}
        return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[
            :12
        ]
