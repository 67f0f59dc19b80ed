"""What a run writes about itself: metrics.jsonl (numbers by step) and events.jsonl (what happened, and why)."""

import json
import os
import time
from pathlib import Path

from megajukebox.data.files import write_whole


class RunLog:
    """The two files of a run folder, appended line by line. One process of a run writes (`writes`); all note skips."""

    def __init__(self, run: Path, writes: bool, rank: int = 0):
        self.run, self.writes, self.rank = run, writes, rank
        if writes:
            run.mkdir(parents=True, exist_ok=True)
            for name in ("metrics.jsonl", "events.jsonl"):
                if (run / name).exists():
                    _end_last_line(run / name)

    def metrics(self, step: int, split: str, values: dict[str, float]) -> None:
        """`split` is train or held_out."""
        self._append("metrics.jsonl", {"step": step, "time": time.time(), "split": split, **values})

    def event(self, event: str, step: int | None = None, **reason: object) -> None:
        """`event` is one word (start, resume, save, reject, skip, stop, done, ...); `reason` says the rest."""
        place = {} if step is None else {"step": step}
        self._append("events.jsonl", {"time": time.time(), "event": event, **place, **reason})

    def skip(self, shard: str, key: str, reason: str) -> None:
        """A clip was replaced; any rank may say so."""
        self.note("skip", shard=shard, key=key, reason=reason)

    def note(self, event: str, step: int | None = None, **reason: object) -> None:
        """An event that any rank may tell: each line is one write to the file's end, so that none mix."""
        place = {} if step is None else {"step": step}
        record = {"time": time.time(), "event": event, **place, "rank": self.rank, **reason}
        self.run.mkdir(parents=True, exist_ok=True)
        events = os.open(self.run / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(events, (json.dumps(record) + "\n").encode())
        finally:
            os.close(events)

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps after `step`: a resumed run computes them again."""
        path = self.run / "metrics.jsonl"
        if self.writes and path.exists():
            lines = [line for line in path.read_text().splitlines(keepends=True) if _step(line) <= step]
            write_whole(path, "".join(lines).encode())

    def _append(self, name: str, record: dict) -> None:
        if self.writes:
            with (self.run / name).open("a") as file:
                file.write(json.dumps(record) + "\n")


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
