"""What a run writes about itself: metrics.jsonl (numbers by step) and events.jsonl (what happened, and why)."""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from megajukebox.common.files import make_run_folder, write_atomic
from megajukebox.common.redaction import redacted
from megajukebox.records.productive_time import Productive

STARTS = ("start", "resume")  # events with which an attempt begins


class RunLog:
    """The two files of a run folder, appended line by line. One process of a run writes (`writes`); all note skips."""

    def __init__(
        self, run: Path, writes: bool, rank: int = 0, clock: Callable[[], float] = time.time
    ):
        self.run, self.writes, self.rank, self.clock = run, writes, rank, clock
        self.lost = 0
        if writes:
            make_run_folder(run)
            for name in ("metrics.jsonl", "events.jsonl"):
                if (run / name).exists():
                    _end_last_line(run / name)

    def metrics(self, step: int, split: str, values: dict[str, float]) -> None:
        """`split` is train or held_out."""
        self._append(
            "metrics.jsonl", {"step": step, "time": self.clock(), "split": split, **values}
        )

    def event(self, event: str, step: int | None = None, **reason: object) -> None:
        """`event` is one word (start, resume, save, reject, skip, stop, done, ...); `reason` says the rest.

        Secrets in it (a signed URL, a token) are hidden.
        """
        place = {} if step is None else {"step": step}
        self._append(
            "events.jsonl", {"time": self.clock(), "event": event, **place, **redacted(reason)}
        )

    def skip(self, shard: str, key: str, kind: str, reason: str) -> None:
        """A clip was replaced; any rank may say so."""
        self.note("skip", shard=shard, key=key, kind=kind, reason=reason)

    def note(self, event: str, step: int | None = None, **reason: object) -> None:
        """An event that any rank may tell: each line is one write to the file's end, so that none mix."""
        place = {} if step is None else {"step": step}
        record = {
            "time": self.clock(),
            "event": event,
            **place,
            "rank": self.rank,
            **redacted(reason),
        }
        try:
            make_run_folder(self.run)
            events = os.open(
                self.run / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644
            )
            try:
                os.write(events, (json.dumps(record) + "\n").encode())
            finally:
                os.close(events)
        except OSError as error:
            self._lose("events.jsonl", error)

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps after `step`: a resumed run computes them again.

        What they cost stays, as the event `forget`: without it the account of the run's time would have a hole.
        """
        path = self.run / "metrics.jsonl"
        if not self.writes or not path.exists():
            return
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if _step(line) <= step]
        if len(kept) < len(lines):
            self._note_lost(
                [record for record in read_lines(path) if record.get("split") == "train"], step
            )
            write_atomic(path, "".join(kept).encode())

    def _note_lost(self, lines: list[dict], step: int) -> None:
        """The event `forget`: how many steps after `step`, and how many seconds of them, are trained again."""
        made = Productive(
            [e["time"] for e in read_lines(self.run / "events.jsonl") if e.get("event") in STARTS]
        )
        points = [
            (record["step"], made.add(record))
            for record in lines
            if isinstance(record.get("step"), int)
        ]
        last = max((place for place, _ in points), default=step)
        if last > step:
            seconds = made.total - seconds_at(points, step)
            reason = f"steps {step + 1} to {last} were not in a checkpoint and are trained again"
            account = {name: value for name, value in lines[-1].items() if name.startswith("time_")}
            about = {
                "steps": last - step,
                "seconds": round(seconds, 3),
                "until": lines[-1]["time"],
                "account": account,
            }
            self.event("forget", step, **about, reason=reason)

    def _append(self, name: str, record: dict) -> None:
        """A full or absent disk costs lines, not the run: they are counted, and told when there is room again."""
        if not self.writes:
            return
        try:
            if self.lost:
                _end_last_line(self.run / name)
            with (self.run / name).open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            self._lose(name, error)
            return
        if self.lost:
            lost, self.lost = self.lost, 0
            self.event(
                "alert",
                reason=f"{lost} lines of metrics and events could not be written: the disk was full",
            )

    def _lose(self, name: str, error: OSError) -> None:
        """A line could not be written; what the job prints to may lie on the same full disk."""
        if not self.lost:
            with suppress(OSError):
                print(
                    f"{self.run / name}: {error.strerror}; training goes on without its lines",
                    file=sys.stderr,
                )
        self.lost += 1


def seconds_at(points: list[tuple[int, float]], step: int) -> float:
    """Productive seconds up to `step`, in proportion between the two logged steps around it."""
    before = max((p for p in points if p[0] <= step), default=(0, 0.0))
    after = min((p for p in points if p[0] > step), default=before)
    share = (step - before[0]) / (after[0] - before[0]) if after[0] > before[0] else 0.0
    return before[1] + share * (after[1] - before[1])


def _end_last_line(path: Path) -> None:
    """A crash may have cut the last line; left without its end, it would take the next record with it."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _step(line: str) -> float:
    """The step of a line; a line cut by a crash counts as after everything."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")


def read_lines(path: Path) -> list[dict]:
    """The records of a .jsonl file; lines that a crash cut are left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
