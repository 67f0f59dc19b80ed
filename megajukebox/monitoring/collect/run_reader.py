"""Reads run folders as they grow. Only reads: it can never break a run."""

import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from megajukebox.common.errors import UserError
from megajukebox.monitoring.collect.goodput import GoodputLedger, TimeAccount
from megajukebox.monitoring.collect.histogram import Histogram
from megajukebox.monitoring.collect.host import disk
from megajukebox.monitoring.collect.run_state import AlertThresholds, CheckpointInfo, RunState
from megajukebox.records.events import (
    SDC,
    AlertRaised,
    AttemptEnded,
    AttemptStarted,
    BadSampleSkipped,
    CheckpointSaved,
    Diverged,
    Event,
    HangDetected,
    RunFinished,
    RunStopped,
    StepSkipped,
    StepsRecomputed,
    parse_event,
)
from megajukebox.records.exits import read_exits
from megajukebox.records.heartbeat import Heartbeat, read_heartbeats
from megajukebox.records.job_chain import read_chain
from megajukebox.records.jsonl_tail import Tail, read_object
from megajukebox.records.metrics import TRAIN, upgrade_row
from megajukebox.records.productive_time import number
from megajukebox.records.run_log import EVENTS_FILE, METRICS_FILE

MAX_DEPTH = 4  # folders between the one given and a run
ROWS_KEPT = 128  # train rows that the spike score and percentiles look back on
EVENTS_KEPT = 1000
MAX_SETTINGS_BYTES = 1 << 20  # of run.yaml
MAX_MANIFEST_BYTES = 1 << 28
CHECKPOINT_SECONDS = 60  # between looks at one: sizes of a 512-rank checkpoint are many stats
TIMED = ("step_seconds", "data_seconds")  # metrics that histograms are kept of
SAVES = "save"  # and the histogram of the saves


class RunReader:
    """One run folder, read again and again; what was read before is kept."""

    def __init__(self, folder: Path, name: str, thresholds: AlertThresholds | None = None) -> None:
        self.folder = folder
        self.name = name
        self.thresholds = thresholds or AlertThresholds()
        self.metrics_tail = Tail(folder / METRICS_FILE)
        self.events_tail = Tail(folder / EVENTS_FILE)
        self.recent: deque[dict[str, Any]] = deque(maxlen=ROWS_KEPT)
        self.held_out: dict[str, Any] = {}
        self.histograms: dict[str, Histogram] = {}
        self._checkpoints: dict[Path, tuple[float, CheckpointInfo]] = {}
        self._settings: tuple[float, dict[str, Any]] = (0.0, {})
        self._forget_events()

    def read(self, now: float | None = None) -> RunState:
        """What is known of the run at `now`, in unix seconds; by default at this moment."""
        self._read_events()
        self._read_metrics()
        now = time.time() if now is None else now
        flags = []
        for flag in ("DONE", "STOP", "SAVE"):
            if (self.folder / flag).exists():
                flags.append(flag)
        state = RunState(
            name=self.name,
            folder=self.folder,
            now=now,
            thresholds=self.thresholds,
            settings=self._read_settings(),
            recent=list(self.recent),
            held_out=self.held_out,
            events=list(self.events),
            counts=self.counts.copy(),
            bad_samples=self.bad_samples.copy(),
            skipped_steps=self.skipped_steps.copy(),
            hangs=self.hangs.copy(),
            restarts=self.restarts.copy(),
            sdc_mismatches=self.sdc_mismatches,
            recomputed_steps=self.recomputed_steps,
            ranks=self._read_ranks(),
            exits=read_exits(self.folder),
            checkpoints=self._read_checkpoints(now),
            account=TimeAccount(0.0, {}, []),
            flags=frozenset(flags),
            disk=disk(self.folder),
            unreadable=self.metrics_tail.lost + self.events_tail.lost,
            histograms=self.histograms,
            chain=read_chain(self.folder, now),
        )
        return with_account(state, self.ledger)

    def _forget_events(self) -> None:
        self.ledger = GoodputLedger()
        self.events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self.counts: Counter[type[Event]] = Counter()
        self.bad_samples: Counter[str] = Counter()
        self.skipped_steps: Counter[str] = Counter()
        self.hangs: Counter[str] = Counter()
        self.restarts: Counter[str] = Counter()
        self.sdc_mismatches = 0
        self.recomputed_steps = 0
        self.histograms.pop(SAVES, None)

    def _read_events(self) -> None:
        records, replaced = self.events_tail.new()
        if replaced:
            self._forget_events()
        for record in records:
            if (
                record.get("event") == BadSampleSkipped.name
            ):  # of hundreds of ranks: tens of thousands
                self.counts[BadSampleSkipped] += 1
                self.bad_samples[str(record.get("kind", BadSampleSkipped.kind))] += 1
                continue
            event = parse_event(record)
            self.counts[type(event)] += 1
            if isinstance(event, BadSampleSkipped):  # of version 1
                self.bad_samples[event.kind] += 1
                continue
            if isinstance(event, AlertRaised):
                self.sdc_mismatches += event.kind == SDC
            elif isinstance(event, StepSkipped):
                self.skipped_steps[event.kind] += 1
            elif isinstance(event, HangDetected):
                self.hangs[event.phase] += 1
            elif isinstance(event, AttemptStarted) and self.ledger.attempts:
                self.restarts[restart_reason(self.events)] += 1
            elif isinstance(event, CheckpointSaved) and event.seconds is not None:
                self.histograms.setdefault(SAVES, Histogram()).add(event.seconds)
            elif isinstance(event, StepsRecomputed):
                self.recomputed_steps += event.steps
            self.events.append(event)
            self.ledger.event(event)

    def _read_metrics(self) -> None:
        rows, replaced = self.metrics_tail.new()
        if replaced:
            self.recent.clear()
            self.held_out = {}
            self.ledger.reset()
            for name in TIMED:
                self.histograms.pop(name, None)
        for row in map(upgrade_row, rows):
            if row.get("split", TRAIN) == TRAIN:
                self.recent.append(row)
                for name in TIMED:
                    seconds = number(row.get(name))
                    if seconds is not None:
                        self.histograms.setdefault(name, Histogram()).add(seconds)
            else:
                self.held_out = row
            self.ledger.row(row)

    def _read_settings(self) -> dict[str, Any]:
        path = self.folder / "run.yaml"
        try:
            changed = path.stat().st_mtime
            if changed != self._settings[0]:
                with path.open("rb") as file:
                    content = yaml.safe_load(file.read(MAX_SETTINGS_BYTES))
                self._settings = (changed, content if isinstance(content, dict) else {})
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            pass  # being written, or not ours: what was read before holds
        return self._settings[1]

    def _read_ranks(self) -> list[Heartbeat]:
        """Heartbeats of the present attempt; those of one before it, on more ranks, are left over."""
        beats = read_heartbeats(self.folder)
        newest = max((beat.generation or 0 for beat in beats), default=0)
        return [beat for beat in beats if (beat.generation or 0) == newest]

    def _read_checkpoints(self, now: float) -> list[CheckpointInfo]:
        """Oldest first. A folder is looked at again after CHECKPOINT_SECONDS."""
        known: dict[Path, tuple[float, CheckpointInfo]] = {}
        for folder in sorted(self.folder.glob("checkpoints/step-[0-9]*[0-9]")):
            before = self._checkpoints.get(folder)
            if before is None or now - before[0] > CHECKPOINT_SECONDS:
                checkpoint = read_checkpoint(folder)
                before = before if checkpoint is None else (now, checkpoint)
            if before is not None:
                known[folder] = before
        self._checkpoints = known
        return [checkpoint for _, checkpoint in known.values()]


def with_account(state: RunState, ledger: GoodputLedger) -> RunState:
    """The account ends where the run did; with the last row while training, since the next will account for the rest."""
    logged = number(state.last.get("time"))
    end: float | None = state.now
    if state.status in ("done", "stopped", "failed"):
        end = max((attempt.last for attempt in ledger.attempts), default=state.now)
    elif state.status == "training" and logged is not None:
        end = logged
    return replace(state, account=ledger.account(end or state.now))


def read_checkpoint(folder: Path) -> CheckpointInfo | None:
    """Its size and time by its manifest; None if it is no checkpoint any more."""
    manifest = folder / "manifest.json"
    listed = read_object(manifest, MAX_MANIFEST_BYTES).get("files")
    sizes: dict[str, float | None] = {}
    try:
        written = manifest.stat().st_mtime
        sizes = {name: number(facts.get("bytes")) for name, facts in (listed or {}).items()}
        same = [(folder / name).stat().st_size == size for name, size in sizes.items()]
        whole = bool(sizes) and all(same)
    except (OSError, AttributeError, ValueError):
        written = folder.stat().st_mtime if folder.exists() else 0.0
        sizes = {}
        whole = False
    digits = folder.name.removeprefix("step-")
    if not written or not digits.isdecimal():
        return None
    total = int(sum(size or 0 for size in sizes.values()))
    return CheckpointInfo(int(digits), written, total, whole)


RESTART_REASONS = {
    RunStopped: "stop",
    Diverged: "diverged",
    HangDetected: "hang",
    RunFinished: "done",
}


def restart_reason(events: deque[Event]) -> str:
    """Why the attempt before a restart ended, in one word."""
    for event in reversed(events):
        if type(event) in RESTART_REASONS:
            return RESTART_REASONS[type(event)]
        if isinstance(event, AttemptEnded):
            return "stop" if event.kind == "stopped" else "crash"
        if isinstance(event, AttemptStarted | CheckpointSaved):
            break
    return "crash"


class Runs:
    """All runs in and under some folders, read again and again."""

    def __init__(self, folders: list[Path], thresholds: AlertThresholds | None = None) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise UserError(
                    f"runs {str(folder)!r} is not a folder; give the folder that `megajukebox train` wrote"
                )
        self.folders = folders
        self.thresholds = thresholds or AlertThresholds()
        self.readers: dict[Path, RunReader] = {}

    def read(self, now: float | None = None) -> list[RunState]:
        """The state of every run that is there now: runs come and go between two calls."""
        present: dict[Path, RunReader] = {}
        for name, path in named_runs(self.folders):
            reader = self.readers.get(path)
            present[path] = reader or RunReader(path, name, self.thresholds)
        self.readers = present
        return [reader.read(now) for reader in present.values()]


def named_runs(folders: list[Path]) -> Iterator[tuple[str, Path]]:
    """Name and folder of every run in and under `folders`."""
    for root in folders:
        for path in find_runs(root, MAX_DEPTH):
            yield (str(path.relative_to(root)) if path != root else path.resolve().name), path


def find_runs(folder: Path, depth: int) -> Iterator[Path]:
    """Folders with a run.yaml or metrics, `folder` itself included; a folder that cannot be read holds none."""
    try:
        if (folder / "run.yaml").exists() or (folder / METRICS_FILE).exists():
            yield folder
            return
        children = sorted(path for path in folder.iterdir() if path.is_dir()) if depth else []
    except OSError:
        return
    for child in children:
        yield from find_runs(child, depth - 1)
