"""Reads run folders as they grow. Only reads: it can never break a run."""

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import parse_yaml, read_inside
from megajukebox.monitoring.collect.goodput import GoodputLedger, TimeAccount
from megajukebox.monitoring.collect.histogram import Histogram
from megajukebox.monitoring.collect.host import disk
from megajukebox.monitoring.collect.run_state import AlertThresholds, CheckpointInfo, RunState
from megajukebox.monitoring.collect.unreadable import unreadable_run
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
from megajukebox.records.run_log import EVENTS_FILE, METRICS_FILE, SETTINGS_FILE

log = logging.getLogger(__name__)

MAX_DEPTH = 4  # folders between the one given and a run
LINKED_DEPTH = 1  # behind a link: to a run, or to a folder of runs
ROWS_KEPT = 128  # train rows that the spike score and percentiles look back on
EVENTS_KEPT = 1000
MAX_SETTINGS_BYTES = 1 << 17  # of run.yaml, which has 10 kB; a second of parsing
MAX_MANIFEST_BYTES = 1 << 24  # 200 kB for 512 ranks
MAX_CHECKPOINT_FILES = 1 << 16
MAX_CHECKPOINTS = 1000  # the newest ones
MAX_FIRST_LOOKS = 8  # at the files of a run that is new here: half a GB at once, the rest later
MAX_KIND_LETTERS = 100
MAX_KINDS = 50  # of bad samples, skipped steps, hangs; a file may name any number
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
        self._settings: tuple[float | None, dict[str, Any]] = (None, {})
        self._settings_problem = ""
        self._is_new = True
        self._forget_events()

    def read(self, now: float | None = None) -> RunState:
        """What is known of the run at `now`, in unix seconds; by default at this moment."""
        for _ in range(MAX_FIRST_LOOKS if self._is_new else 1):
            self._read_events()
            self._read_metrics()
            if not self.events_tail.unread and not self.metrics_tail.unread:
                break
        self._is_new = False
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
            settings=self.read_settings(),
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
            problem=self._problem(),
        )
        return with_account(state, self.ledger)

    def _problem(self) -> str:
        """What could not be read at this look, or not all of it."""
        problems = [self._settings_problem]
        for tail in (self.metrics_tail, self.events_tail):
            problems.append(tail.problem)
            if tail.unread:
                problems.append(f"{tail.path.name}: {tail.unread:,} bytes are not read yet")
        return "; ".join(filter(None, problems))

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
                count(self.bad_samples, record.get("kind", BadSampleSkipped.kind))
                continue
            event = parse_event(record)
            self.counts[type(event)] += 1
            if isinstance(event, BadSampleSkipped):  # of version 1
                count(self.bad_samples, event.kind)
                continue
            if isinstance(event, AlertRaised):
                self.sdc_mismatches += event.kind == SDC
            elif isinstance(event, StepSkipped):
                count(self.skipped_steps, event.kind)
            elif isinstance(event, HangDetected):
                count(self.hangs, event.phase)
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

    def read_settings(self) -> dict[str, Any]:
        """What run.yaml says. Where that cannot be read, what was read before holds, and the problem is kept."""
        try:
            changed = (self.folder / SETTINGS_FILE).lstat().st_mtime
        except OSError:  # not there yet
            return self._settings[1]
        if changed == self._settings[0]:
            return self._settings[1]
        settings = self._settings[1]
        self._settings_problem = ""
        try:
            content = parse_yaml(read_inside(self.folder, SETTINGS_FILE, MAX_SETTINGS_BYTES))
            if not isinstance(content, dict):
                raise ValueError("holds no settings")
            settings = content
        except OSError as error:
            self._settings_problem = f"{SETTINGS_FILE}: {error.strerror}"
        except ValueError as error:
            self._settings_problem = f"{SETTINGS_FILE}: {error}"
        self._settings = (changed, settings)
        return settings

    def _read_ranks(self) -> list[Heartbeat]:
        """Heartbeats of the present attempt; those of one before it, on more ranks, are left over."""
        beats = read_heartbeats(self.folder)
        newest = max((beat.generation or 0 for beat in beats), default=0)
        return [beat for beat in beats if (beat.generation or 0) == newest]

    def _read_checkpoints(self, now: float) -> list[CheckpointInfo]:
        """Oldest first. A folder is looked at again after CHECKPOINT_SECONDS."""
        known: dict[Path, tuple[float, CheckpointInfo]] = {}
        folders = sorted(self.folder.glob("checkpoints/step-[0-9]*[0-9]"))
        for folder in folders[-MAX_CHECKPOINTS:]:
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
    listed = read_object(manifest, MAX_MANIFEST_BYTES, folder.parent.parent).get("files")
    sizes: dict[str, float | None] = {}
    try:
        written = manifest.lstat().st_mtime
        sizes = {name: number(facts.get("bytes")) for name, facts in (listed or {}).items()}
        whole = 0 < len(sizes) <= MAX_CHECKPOINT_FILES
        for name, size in sizes.items():
            whole = whole and (folder / inner(name)).lstat().st_size == size
    except (OSError, AttributeError, ValueError):
        written = folder.stat().st_mtime if folder.exists() else 0.0
        sizes = {}
        whole = False
    digits = folder.name.removeprefix("step-")
    if not written or not digits.isdecimal():
        return None
    total = int(sum(size or 0 for size in sizes.values()))
    return CheckpointInfo(int(digits), written, total, whole)


def inner(name: str) -> str:
    """`name`, as the name of a file within a folder.

    Raises:
        ValueError: it leads out of the folder.
    """
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise ValueError(f"{name!r} leads out of its folder")
    return name


def count(counter: Counter[str], kind: object) -> None:
    """Count one of a kind; as `other` where there are MAX_KINDS already."""
    name = str(kind)[:MAX_KIND_LETTERS]
    counter[name if name in counter or len(counter) < MAX_KINDS else "other"] += 1


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
        """The state of every run that is there now: runs come and go between two calls.

        One that cannot be read has the status `unreadable`, and costs no other run anything.
        """
        present: dict[Path, RunReader] = {}
        states: list[RunState] = []
        for name, path in named_runs(self.folders):
            reader = self.readers.get(path) or RunReader(path, name, self.thresholds)
            try:
                states.append(reader.read(now))
                present[path] = reader
            except Exception as error:  # whatever a file of it makes of our reading
                log.debug("%s cannot be read", path, exc_info=True)
                states.append(unreadable_run(name, path, self.thresholds, error, now))
        self.readers = present
        return states


def named_runs(folders: list[Path]) -> Iterator[tuple[str, Path]]:
    """Name and folder of every run in and under `folders`."""
    for root in folders:
        for path in find_runs(root, MAX_DEPTH):
            yield (str(path.relative_to(root)) if path != root else path.resolve().name), path


def find_runs(folder: Path, depth: int) -> Iterator[Path]:
    """Folders with a run.yaml or metrics, `folder` itself included; a folder that cannot be read holds none.

    A link leads to a run or to a folder of runs. No folder is looked into twice, and links come last: a run has its
    own name, not that of a link to it which somebody made.
    """
    seen: set[tuple[int, int]] = set()  # device and inode
    waiting = [(folder, depth)]  # the next one is the last
    linked: list[tuple[Path, int]] = []
    while waiting or linked:
        path, depth = (waiting or linked).pop()
        children: list[Path] = []
        try:
            facts = path.stat()
            if (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            if any((path / name).exists() for name in (SETTINGS_FILE, METRICS_FILE)):
                yield path
            elif depth:
                # isdir() of os: of a link to where nobody may look, or to no possible name, it says no.
                children = sorted(child for child in path.iterdir() if os.path.isdir(child))
        except OSError:
            continue
        for child in reversed(children):
            if child.is_symlink():
                linked.append((child, min(depth - 1, LINKED_DEPTH)))
            else:
                waiting.append((child, depth - 1))
