"""Reads run folders as they grow. Only reads: it can never break a run."""

import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from megajukebox.data.stream.bad_samples import kind_of_old_event
from megajukebox.monitoring.collect.goodput import GoodputLedger, TimeAccount
from megajukebox.monitoring.collect.histogram import Histogram, skip_kind
from megajukebox.monitoring.collect.host import disk
from megajukebox.monitoring.collect.job_chain import chain_of
from megajukebox.monitoring.collect.run_state import AlertThresholds, CheckpointInfo, RunState
from megajukebox.monitoring.collect.stragglers import RankHealth, rank_of
from megajukebox.records.jsonl_tail import Tail, read_object
from megajukebox.records.productive_time import number

DEPTH = 4  # folders between the one given and a run
WINDOW = 128  # train lines that the spike score and percentiles look back on
LARGEST_YAML = 1 << 20


class RunReader:
    """One run folder, read again and again; what was read before is kept."""

    def __init__(self, folder: Path, name: str, limits: AlertThresholds | None = None) -> None:
        self.folder, self.name, self.limits = folder, name, limits or AlertThresholds()
        self.metrics, self.happened = Tail(folder / "metrics.jsonl"), Tail(folder / "events.jsonl")
        self.recent: deque[dict[str, Any]] = deque(maxlen=WINDOW)
        self.held_out: dict[str, Any] = {}
        self.ledger = GoodputLedger()
        self.seconds_seen: dict[str, Histogram] = {}
        self._checkpoints: dict[Path, tuple[float, CheckpointInfo]] = {}
        self._settings: tuple[float, dict[str, Any]] = (0.0, {})
        self._forget_events()

    def read(self, now: float | None = None) -> RunState:
        self._read_events()
        self._read_metrics()
        now = time.time() if now is None else now
        ranks = self._ranks()
        state = RunState(
            name=self.name, folder=self.folder, now=now, limits=self.limits, settings=self._read_settings(),
            recent=list(self.recent), held_out=self.held_out, events=list(self.events), counts=self.counts.copy(),
            bad_samples=self.bad_samples.copy(), skipped_steps=self.skipped_steps.copy(),
            restarts=self.restarts.copy(), rejects=self.counts["reject"], ranks=ranks, exits=self._exits(),
            checkpoints=self._read_checkpoints(now), account=TimeAccount(0.0, {}, []), flags=self._flags(),
            disk=disk(self.folder), wasted_steps=self.wasted_steps,
            unreadable=self.metrics.lost + self.happened.lost, seconds_seen=self.seconds_seen,
            chain=chain_of(self.folder, now),
        )  # fmt: skip
        return with_account(state, self.ledger)

    def _forget_events(self) -> None:
        self.events: deque[dict[str, Any]] = deque(maxlen=1000)
        self.counts: Counter[str] = Counter()
        self.bad_samples: Counter[str] = Counter()
        self.skipped_steps: Counter[str] = Counter()
        self.restarts: Counter[str] = Counter()
        self.wasted_steps = 0
        self.seconds_seen.pop("save", None)

    def _read_events(self) -> None:
        events, again = self.happened.new()
        if again:
            self._forget_events()
            self.ledger = GoodputLedger()
        for event in events:
            self._take_event(event)

    def _take_event(self, event: dict[str, Any]) -> None:
        kind, reason = str(event.get("event", "")), str(event.get("reason", ""))
        self.counts[kind] += 1
        if kind == "skip":
            self.bad_samples[str(event.get("kind") or kind_of_old_event(reason))] += 1
            return
        self.counts["sdc"] += tells_corruption(event)
        if kind == "skip_step":
            self.skipped_steps[skip_kind(event)] += 1
        if kind in ("start", "resume") and self.ledger.attempts:
            self.restarts[ending_of(self.events)] += 1
        seconds = number(event.get("seconds"))
        if kind == "save" and seconds is not None:
            self.seconds_seen.setdefault("save", Histogram()).add(seconds)
        if kind == "forget":
            self.wasted_steps += int(number(event.get("steps")) or 0)
        self.events.append(event)
        self.ledger.event(event)

    def _read_metrics(self) -> None:
        lines, again = self.metrics.new()
        if again:
            self.recent.clear()
            self.held_out = {}
            self.ledger.reset()
            self.seconds_seen = {
                name: seen for name, seen in self.seconds_seen.items() if name == "save"
            }
        for line in lines:
            if line.get("split", "train") == "train":
                self.recent.append(line)
                self._see(line)
            else:
                self.held_out = line
            self.ledger.line(line)

    def _see(self, line: dict[str, Any]) -> None:
        for name in ("step_seconds", "data_seconds"):
            seconds = number(line.get(name))
            if seconds is not None:
                self.seconds_seen.setdefault(name, Histogram()).add(seconds)

    def _read_settings(self) -> dict[str, Any]:
        path = self.folder / "run.yaml"
        try:
            changed = path.stat().st_mtime
            if changed != self._settings[0]:
                with path.open("rb") as file:
                    found = yaml.safe_load(file.read(LARGEST_YAML))
                self._settings = (changed, found if isinstance(found, dict) else {})
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            pass  # being written, or not ours: what was read before holds
        return self._settings[1]

    def _ranks(self) -> list[RankHealth]:
        """Heartbeats of the present attempt; those of one before it, on more ranks, are left over."""
        beats = [read_object(path) for path in sorted(self.folder.glob("heartbeats/rank-*.json"))]
        ranks = [rank for rank in map(rank_of, beats) if rank is not None]
        newest = max((rank.generation or 0 for rank in ranks), default=0)
        return [rank for rank in ranks if (rank.generation or 0) == newest]

    def _exits(self) -> list[dict[str, Any]]:
        return [
            e for path in sorted(self.folder.glob("exits/rank-*.json")) if (e := read_object(path))
        ]

    def _flags(self) -> frozenset[str]:
        return frozenset(name for name in ("DONE", "STOP", "SAVE") if (self.folder / name).exists())

    def _read_checkpoints(self, now: float) -> list[CheckpointInfo]:
        """Oldest first. A folder is looked at again after a minute: sizes of a 512-rank checkpoint are many stats."""
        folders = sorted(self.folder.glob("checkpoints/step-[0-9]*[0-9]"))
        for folder in folders:
            looked, _ = self._checkpoints.get(folder, (0.0, None))
            if now - looked > 60:
                found = checkpoint_of(folder)
                if found:
                    self._checkpoints[folder] = (now, found)
        self._checkpoints = {
            folder: self._checkpoints[folder] for folder in folders if folder in self._checkpoints
        }
        return [found for _, found in self._checkpoints.values()]


def with_account(state: RunState, ledger: GoodputLedger) -> RunState:
    """The account ends where the run did; with the last line while it goes well, since the next will tell the rest."""
    logged = number(state.last.get("time"))
    healthy = state.status == "training" and logged is not None
    until = logged if healthy else state.now
    if state.status in ("done", "stopped", "failed"):
        until = max((a.last for a in ledger.attempts), default=state.now)
    return replace(state, account=ledger.account(until or state.now))


def checkpoint_of(folder: Path) -> CheckpointInfo | None:
    """Its size and time by its manifest; None if it is no checkpoint any more."""
    manifest = folder / "manifest.json"
    listed = read_object(manifest, largest=1 << 28).get("files")
    digits = folder.name.removeprefix("step-")
    try:
        when = manifest.stat().st_mtime
        sizes = {name: number(facts.get("bytes")) for name, facts in (listed or {}).items()}
        whole = bool(sizes) and all(
            (folder / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, AttributeError, ValueError):
        when, sizes, whole = folder.stat().st_mtime if folder.exists() else 0.0, {}, False
    if not when or not digits.isdecimal():
        return None
    return CheckpointInfo(int(digits), when, int(sum(size or 0 for size in sizes.values())), whole)


def tells_corruption(event: dict[str, Any]) -> bool:
    """Whether ranks were found with other weights than the rest."""
    return event.get("event") == "alert" and "silent corruption" in str(event.get("reason"))


def ending_of(events: deque[dict[str, Any]]) -> str:
    """Why the attempt before a restart ended, in one word."""
    for event in reversed(events):
        kind = str(event.get("event"))
        if kind in ("stop", "diverged", "hang", "done"):
            return kind
        if kind == "attempt_end":
            return "stop" if event.get("kind") == "stopped" else "crash"
        if kind in ("start", "resume", "save"):
            break
    return "crash"


class Runs:
    """All runs in and under some folders, read again and again."""

    def __init__(self, folders: list[Path], limits: AlertThresholds | None = None) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise ValueError(
                    f"runs {str(folder)!r} is not a folder; give the folder that `megajukebox train` wrote"
                )
        self.folders, self.limits = folders, limits or AlertThresholds()
        self.readers: dict[Path, RunReader] = {}

    def read(self, now: float | None = None) -> list[RunState]:
        found = {path: root for root in self.folders for path in find_runs(root, DEPTH)}
        for path, root in found.items():
            if path not in self.readers:
                name = str(path.relative_to(root)) if path != root else path.resolve().name
                self.readers[path] = RunReader(path, name, self.limits)
        self.readers = {path: reader for path, reader in self.readers.items() if path in found}
        return [reader.read(now) for reader in self.readers.values()]


def find_runs(folder: Path, depth: int) -> Iterator[Path]:
    """Folders with a run.yaml or metrics, `folder` itself included; a folder that cannot be read holds none."""
    try:
        if (folder / "run.yaml").exists() or (folder / "metrics.jsonl").exists():
            yield folder
            return
        children = sorted(path for path in folder.iterdir() if path.is_dir()) if depth else []
    except OSError:
        return
    for child in children:
        yield from find_runs(child, depth - 1)
