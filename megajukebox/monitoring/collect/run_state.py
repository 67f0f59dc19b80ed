"""What is known of a run at one moment, and what follows from it: status, speed, time left, slow and silent ranks."""

import hashlib
import json
import math
import signal
import statistics
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from megajukebox.common.errors import EXIT_FATAL
from megajukebox.common.old_settings import upgrade_stage
from megajukebox.monitoring.collect.goodput import TimeAccount
from megajukebox.monitoring.collect.histogram import Histogram, percentile
from megajukebox.monitoring.collect.host import Disk
from megajukebox.monitoring.collect.stragglers import slowdowns
from megajukebox.records.events import (
    NEEDS_OPERATOR,
    AlertRaised,
    AttemptStarted,
    CheckpointSaved,
    Diverged,
    Event,
    RunFinished,
    RunStopped,
)
from megajukebox.records.exits import ProcessExit
from megajukebox.records.heartbeat import Heartbeat
from megajukebox.records.job_chain import JobChain
from megajukebox.records.productive_time import number
from megajukebox.records.spike_score import spike_score

SCORED_LOSSES = 10  # of which the worst counts, since a spike may be over before anybody looks
DATA_WAIT_ROWS = 10
SLOW_STEPS = 5  # times a slow step (p95) without a step count as stalled
STALE_INTERVALS = 3  # between checkpoints without one are too many
# Levels of a VQ-VAE, the lowest first, by how many it has.
LEVELS_FROM_BELOW = {3: ("bottom", "middle", "top"), 2: ("bottom", "top"), 1: ("top",)}

UNREADABLE = "unreadable"  # the status of a run some of whose files cannot be read

E = TypeVar("E", bound=Event)


@dataclass(frozen=True)
class AlertThresholds:
    """Seconds after which silence means something."""

    stall: float = 120.0  # without a step, at least; five slow steps if that is longer
    silent: float = 60.0  # a heartbeat older than this is missed
    checkpoint: float = 300.0  # age of a stale one, at least; three intervals if that is longer
    down: float = 900.0  # without a process: no plan of anybody's


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
    thresholds: AlertThresholds
    settings: dict[str, Any]  # run.yaml
    recent: list[dict[str, Any]]  # the last train rows
    held_out: dict[str, Any]  # the last held-out row
    events: list[Event]  # the last ones, without bad samples
    counts: Counter[type[Event]]  # of all events
    bad_samples: Counter[str]  # replaced, by kind
    skipped_steps: Counter[str]  # by kind
    hangs: Counter[str]  # by phase
    restarts: Counter[str]  # by how the attempt before ended
    sdc_mismatches: int
    recomputed_steps: int
    ranks: list[Heartbeat]
    exits: list[ProcessExit]
    checkpoints: list[CheckpointInfo]  # oldest first
    account: TimeAccount
    flags: frozenset[str]  # of DONE, STOP, SAVE
    disk: Disk
    unreadable: int  # lines
    histograms: dict[str, Histogram] = field(default_factory=dict)
    chain: JobChain | None = None  # of jobs, under SLURM
    problem: str = ""  # why some of its files, or all, cannot be read

    # ---- Metrics ------------------------------------------------------------------------------------------------------

    @property
    def last(self) -> dict[str, Any]:
        return self.recent[-1] if self.recent else {}

    def value(self, name: str) -> float | None:
        """The last train value of a metric."""
        return number(self.last.get(name))

    def lately(self, name: str) -> list[float]:
        """Its values in the last train rows."""
        values = []
        for row in self.recent:
            value = number(row.get(name))
            if value is not None:
                values.append(value)
        return values

    def last_event(self, *kinds: type[E]) -> E | None:
        """The newest event of these kinds."""
        matching = (event for event in reversed(self.events) if isinstance(event, kinds))
        return next(matching, None)

    # ---- Settings -----------------------------------------------------------------------------------------------------

    @property
    def stage(self) -> str:
        return str(self.settings.get("stage", ""))

    @property
    def training(self) -> dict[str, Any]:
        """The stage's settings in its preset, in the present keys."""
        preset = self.settings.get("preset")
        stages = preset.get("training") if isinstance(preset, dict) else None
        return upgrade_stage(stages.get(self.stage) if isinstance(stages, dict) else None)

    @property
    def checkpoint_every(self) -> float | None:
        """Steps between two checkpoints."""
        checkpointing = self.training.get("checkpointing")
        return number(checkpointing.get("every")) if isinstance(checkpointing, dict) else None

    @property
    def target(self) -> int | None:
        steps = number(self.training.get("steps"))
        return int(steps) if steps else None

    @property
    def config_digest(self) -> str:
        """The same for two runs of the same settings."""
        about = {name: value for name, value in self.settings.items() if name != "made_by"}
        text = json.dumps(about, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    # ---- Progress -----------------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """The last step known: from the metrics, a heartbeat, or the last save, start or end of the run."""
        logged = number(self.last.get("step")) or 0.0
        if not self.recent and self.checkpoints:
            logged = self.checkpoints[-1].step
        # Metrics come at intervals; a run may end, and be saved, between two of them.
        event = self.last_event(RunFinished, RunStopped, CheckpointSaved, AttemptStarted)
        told = number(event.step) if event else None
        return int(max([logged, told or 0.0, *(beat.step for beat in self.ranks)]))

    @property
    def step_seconds(self) -> float | None:
        """The median of the last steps that were logged."""
        seconds = self.lately("step_seconds")
        return statistics.median(seconds) if seconds else None

    @property
    def eta_seconds(self) -> float | None:
        """Training time that is left at the present speed, waits for data included."""
        if self.target is None or self.step_seconds is None or self.status in ("done", "failed"):
            return None
        return max(0, self.target - self.step) * self.step_seconds

    @property
    def chain_seconds_left(self) -> float | None:
        """What the present job and those queued after it may still take; None outside a chain of jobs."""
        return self.chain.seconds_left(self.now) if self.chain and self.alive else None

    # ---- Signs of life ------------------------------------------------------------------------------------------------

    @property
    def heartbeat(self) -> float | None:
        """The newest of all ranks."""
        return max((beat.time for beat in self.ranks), default=None)

    @property
    def last_seen(self) -> float | None:
        """The last sign of life of any kind."""
        event = self.events[-1].time if self.events else None
        times = (number(self.last.get("time")), event or None, self.heartbeat)
        return max((time for time in times if time is not None), default=None)

    @property
    def attempt_start(self) -> float | None:
        """When the present attempt began."""
        started = self.last_event(AttemptStarted)
        return started.time or None if started else None

    @property
    def last_step_time(self) -> float | None:
        """When the last step was made: a logged one, or one that a heartbeat reports."""
        logged = number(self.last.get("step")) or 0
        times = [beat.phase_since for beat in self.ranks if beat.step >= logged]
        known = (number(self.last.get("time")), self.attempt_start, *times)
        return max((time for time in known if time is not None), default=None)

    @property
    def stall_after(self) -> float:
        """Seconds without a step that are too many: five times a slow one (p95), and not less than the threshold."""
        slow = percentile(self.lately("step_seconds"), 0.95) or 0.0
        rows = 1.0 if self.ranks else (number(self.training.get("log_every")) or 1.0)
        return max(self.thresholds.stall, SLOW_STEPS * slow * rows)

    @property
    def alive(self) -> bool:
        """Whether some process of it gave a sign of life lately."""
        if self.ended:
            return False
        if self.ranks:
            return self.now - (self.heartbeat or 0.0) <= self.thresholds.silent
        return self.last_seen is not None and self.now - self.last_seen <= self.stall_after

    @property
    def silent_ranks(self) -> list[Heartbeat]:
        """Ranks whose heartbeat stopped while others still beat."""
        if not self.alive or self.ended:
            return []
        newest = self.heartbeat or 0.0
        return [beat for beat in self.ranks if newest - beat.time > self.thresholds.silent]

    # ---- How it stands ------------------------------------------------------------------------------------------------

    @property
    def ended(self) -> str | None:
        """The event that ended the run, if no start came after it: done, stop or diverged."""
        if "DONE" in self.flags:
            return RunFinished.name
        last = self.last_event(RunFinished, RunStopped, Diverged, AttemptStarted)
        return None if last is None or isinstance(last, AttemptStarted) else last.name

    @property
    def wanted(self) -> bool:
        """Whether it should continue: not where a person asked it to stop."""
        if self.ended != RunStopped.name:
            return True
        stop = self.last_event(RunStopped)
        by_person = stop and (stop.stop_after or stop.signal == signal.SIGINT)
        return not ("STOP" in self.flags or by_person)

    @property
    def exit_code(self) -> int | None:
        """The worst code of the last processes that ended, if they are the last thing that happened."""
        started = self.attempt_start or 0.0
        codes = []
        for record in self.exits:
            if record.time >= started and record.code is not None:
                codes.append(record.code)
        return max(codes, key=lambda code: (code == EXIT_FATAL, code), default=None)

    @property
    def status(self) -> str:
        """One word: unreadable, done, stopped, failed, waiting, down, starting, stalled, training, or new."""
        if self.problem:
            return UNREADABLE
        if self.ended == RunFinished.name:
            return "done"
        last = self.events[-1] if self.events else None
        if isinstance(last, AlertRaised) and last.kind == NEEDS_OPERATOR:
            return "failed"  # the supervisor will not start it again
        if not self.alive:
            if self.exit_code == EXIT_FATAL or self.ended == Diverged.name:
                return "failed"
            if not self.wanted:
                return "stopped"
            if self.last_seen is None:
                return "new"
            return "down" if self.now - self.last_seen > self.thresholds.down else "waiting"
        if self.now - (self.last_step_time or self.now) > self.stall_after:
            return "stalled"
        logged = number(self.last.get("time")) or 0
        return "training" if self.recent and logged >= (self.attempt_start or 0) else "starting"

    # ---- Health -------------------------------------------------------------------------------------------------------

    @property
    def spike_score(self) -> float | None:
        """The worst of the last ten logged losses, in standard deviations above those before it.

        None with too few losses.
        """
        losses = self.lately("loss")
        first = max(0, len(losses) - SCORED_LOSSES + 1)
        scores = []
        for end in range(first, len(losses) + 1):
            score = spike_score(losses[:end])
            if score is not None:
                scores.append(score)
        return max(scores, default=None)

    @property
    def slowdowns(self) -> dict[int, float]:
        return slowdowns(self.ranks)

    @property
    def bad_sample_ratio(self) -> float | None:
        """Share of the samples of this attempt that could not be read."""
        bad = self.value("bad_samples")
        config = self.settings.get("ds_config")
        started = self.last_event(AttemptStarted)
        if bad is None or not isinstance(config, dict) or started is None:
            return None
        micro = number(config.get("train_micro_batch_size_per_gpu")) or 0.0
        batch = micro * (number(config.get("gradient_accumulation_steps")) or 1.0)
        read = (self.step - (started.step or 0)) * batch
        return min(1.0, bad / read) if read > 0 else None

    @property
    def data_wait_ratio(self) -> float | None:
        """Share of the last ten logged steps spent waiting for data."""
        rows = self.recent[-DATA_WAIT_ROWS:]
        waited = [number(row.get("data_seconds")) for row in rows]
        total = sum(number(row.get("step_seconds")) or 0.0 for row in rows)
        if not total or None in waited:
            return None
        return sum(seconds or 0.0 for seconds in waited) / total

    # ---- Checkpoints --------------------------------------------------------------------------------------------------

    @property
    def whole_checkpoints(self) -> list[CheckpointInfo]:
        return [checkpoint for checkpoint in self.checkpoints if checkpoint.whole]

    @property
    def save_interval(self) -> float | None:
        """Seconds between checkpoints, by the settings and the present speed."""
        every = self.checkpoint_every
        seconds = self.step_seconds
        return every * seconds if every and seconds else None

    @property
    def checkpoint_due(self) -> float | None:
        """When the newest whole checkpoint becomes stale: three intervals (not less than the threshold) after it was
        written, or after the present attempt began.
        """
        if self.save_interval is None or not self.whole_checkpoints:
            return None
        last = max(self.whole_checkpoints[-1].time, self.attempt_start or 0.0)
        return last + max(self.thresholds.checkpoint, STALE_INTERVALS * self.save_interval)

    # ---- Codebooks of a VQ-VAE ----------------------------------------------------------------------------------------

    def codebook_size(self, level: str) -> float | None:
        model = self.settings.get("model")
        if not isinstance(model, dict):
            return None
        targets = model.get("targets")
        spectrum = model.get("spectrum")
        if isinstance(targets, dict) and targets.get(level) == "spectrum":
            return number(spectrum.get("codebook_size")) if isinstance(spectrum, dict) else None
        return number(model.get("codebook_size", model.get("codes")))

    def codebook_usage(self, level: str) -> float | None:
        """Codes that the last batch chose, over those that it would have chosen if all were used alike.

        A small batch cannot choose all; and codes alive in the running average mean nothing, since restarts keep those
        alive that no vector chooses.
        """
        used = self.value(f"{level}/used")
        size = self.codebook_size(level)
        if used is None or not size:
            return None
        vectors = self.code_vectors(level)
        return used / (size * (1 - math.exp(-vectors / size)) if vectors else size)

    def code_vectors(self, level: str) -> float | None:
        """Code vectors of one micro-batch over all ranks."""
        rate = self.value("audio_seconds_per_second")
        seconds = self.value("step_seconds")
        try:
            model = self.settings["model"]
            depth = LEVELS_FROM_BELOW[len(model["down"])].index(level) + 1
            strides = zip(model["stride"][:depth], model["down"][:depth])
            hop = math.prod(stride**down for stride, down in strides)
            config = self.settings.get("ds_config") or {}
            accumulation = number(config.get("gradient_accumulation_steps")) or 1
            codes_per_second = model["sample_rate"] / hop / accumulation
            if (model.get("targets") or {}).get(level) != "spectrum":
                codes_per_second *= model.get("wave_batch_ratio", 1.0)
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
            return None
        return rate * seconds * codes_per_second if rate and seconds else None
