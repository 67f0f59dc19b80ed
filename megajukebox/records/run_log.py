"""What a run writes about itself: metrics.jsonl (numbers by step) and events.jsonl (what happened, and why)."""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from megajukebox.common.files import make_run_folder, open_append, write_atomic
from megajukebox.common.redaction import redacted
from megajukebox.common.untrusted_files import open_inside, read_inside
from megajukebox.records.events import (
    LINES_LOST,
    AlertRaised,
    AttemptStarted,
    BadSampleSkipped,
    Event,
    StepsRecomputed,
    event_record,
    read_events,
)
from megajukebox.records.jsonl_tail import MAX_LINES_BYTES, parsed
from megajukebox.records.metrics import TRAIN, phase_seconds, upgrade_row
from megajukebox.records.productive_time import Productive, seconds_at
from megajukebox.records.schema import SCHEMA

log = logging.getLogger(__name__)

SETTINGS_FILE = "run.yaml"
METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"


class RunLog:
    """The two files of a run folder, appended line by line. One process of a run `writes`; any rank may `note`."""

    def __init__(
        self, run: Path, writes: bool, rank: int = 0, clock: Callable[[], float] = time.time
    ):
        self.run = run
        self.writes = writes
        self.rank = rank
        self.clock = clock
        self.lost = 0  # lines that could not be written
        if writes:
            make_run_folder(run)
            for name in (METRICS_FILE, EVENTS_FILE):
                _end_last_line(run / name)

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """A row after `step` optimizer steps; `split` is train or held_out."""
        row: dict[str, object] = {"schema": SCHEMA, "step": step, "time": self.clock()}
        self._append(METRICS_FILE, {**row, "split": split, **values})

    def event(self, event: Event) -> None:
        """An event of the process that writes. Secrets in it (a signed URL, a token) are hidden."""
        self._append(EVENTS_FILE, redacted(event_record(replace(event, time=self.clock()))))

    def note(self, event: Event) -> None:
        """An event that any rank may write: each line is one write to the file's end, so that none mix."""
        record = redacted(event_record(replace(event, time=self.clock(), rank=self.rank)))
        try:
            make_run_folder(self.run)
            with open_append(self.run / EVENTS_FILE) as file:
                file.write((json.dumps(record) + "\n").encode())
        except OSError as error:
            self._lose(EVENTS_FILE, error)

    def bad_sample(self, shard: str, key: str, kind: str, reason: str) -> None:
        """A sample was replaced; any rank may note it."""
        self.note(BadSampleSkipped(shard=shard, key=key, kind=kind, reason=reason))

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps after `step`: a resumed run computes them again.

        Their cost stays, as the event StepsRecomputed: without it the account of the run's time would have a hole.
        """
        path = self.run / METRICS_FILE
        if not self.writes or not path.exists():
            return
        lines = read_inside(self.run, METRICS_FILE, MAX_LINES_BYTES).splitlines(keepends=True)
        kept, rows = _split_after(lines, step)
        if kept < len(lines):
            self._log_recomputed(rows, step)
            write_atomic(path, b"".join(lines[:kept]))

    def _log_recomputed(self, rows: list[dict[str, Any]], step: int) -> None:
        """How many steps after `step`, and how many seconds of them, are trained again."""
        starts = [
            e.time
            for e in read_events(self.run, bad_samples=False)
            if isinstance(e, AttemptStarted)
        ]
        productive = Productive(starts)
        points: list[tuple[int, float]] = []
        for row in rows:
            if isinstance(row.get("step"), int):
                points.append((row["step"], productive.add(row)))
        last = max((logged for logged, _ in points), default=step)
        if last <= step:
            return
        event = StepsRecomputed(
            step=step,
            steps=last - step,
            seconds=round(productive.total - seconds_at(points, step), 3),
            end_time=rows[-1]["time"],
            phase_seconds=phase_seconds(rows[-1]),
            reason=f"steps {step + 1} to {last} were not in a checkpoint and are trained again",
        )
        self.event(event)

    def _append(self, name: str, record: Mapping[str, object]) -> None:
        """A full or absent disk costs lines, not the run: they are counted, and reported once there is space again."""
        if not self.writes:
            return
        try:
            if self.lost:
                _end_last_line(self.run / name)
            with open_append(self.run / name) as file:
                file.write((json.dumps(record) + "\n").encode())
        except OSError as error:
            self._lose(name, error)
            return
        if self.lost:
            reason = (
                f"{self.lost} lines of metrics and events could not be written: the disk was full"
            )
            self.lost = 0
            self.event(AlertRaised(kind=LINES_LOST, reason=reason))

    def _lose(self, name: str, error: OSError) -> None:
        """Count a line that could not be written, and log the first; the log may lie on the same full disk."""
        if not self.lost:
            path = self.run / name
            log.warning("%s: %s; training continues without its lines", path, error.strerror)
        self.lost += 1


def _split_after(lines: list[bytes], step: int) -> tuple[int, list[dict[str, Any]]]:
    """How many lines of the metrics are of steps up to `step`; the train rows after them, and the last one before.

    Read from the end on, for steps only grow along the file (a resume drops what comes after its own) and 512 ranks
    wait meanwhile. A line cut by a crash counts as after everything.
    """
    kept = len(lines)
    rows: list[dict[str, Any]] = []
    for index in range(len(lines) - 1, -1, -1):
        row = upgrade_row(parsed(lines[index]) or {})
        is_after = not isinstance(row.get("step"), int) or row["step"] > step
        if is_after:
            kept = index
        if row.get("split") == TRAIN:
            rows.append(row)
            if not is_after:
                break
    return kept, rows[::-1]


def _end_last_line(path: Path) -> None:
    """A crash may have cut the last line; left without its end, it would take the next record with it."""
    if not path.exists():
        return
    with open_inside(path.parent, path.name) as written:
        size = written.seek(0, os.SEEK_END)
        written.seek(max(0, size - 1))
        is_cut = written.read(1) not in (b"", b"\n")
    if is_cut:
        with open_append(path) as file:
            file.write(b"\n")
