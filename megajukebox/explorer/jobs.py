"""The Studio's queue: one song at a time, each by the `sample` entry in a process of its own.

    waiting -> making -> done | failed | cancelled

The server never imports a model: whatever happens to a song, the pages stay up, and to cancel is to end a process.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from threading import Lock, Thread
from typing import Any

from megajukebox.data.files import write_whole
from megajukebox.explorer.uploads import environment

MOST_WAITING = 20
SHOWN = 50  # songs of the list; older ones are in the folder
PATIENCE = 5  # seconds between asking a process to end and ending it
TAIL = 2000  # bytes of what a failed process said, to look for its last line


@dataclass
class Job:
    """One song asked for; `request` is what the `sample` entry is given."""

    request: dict[str, Any]
    folder: Path  # of its request, its progress and what the process said
    options: list[str] = field(default_factory=list)  # of the `sample` entry
    asked: float = field(default_factory=time.time)
    state: str = "waiting"
    reason: str = ""
    process: subprocess.Popen | None = None
    cancelled: bool = False

    @property
    def id(self) -> str:
        return self.request["id"]

    def progress(self) -> tuple[float, str]:
        """(share of all codes, what is being made)."""
        try:
            told = json.loads((self.folder / "progress.json").read_text())
            done, total = told["done"], told["total"]
        except (OSError, ValueError, KeyError):
            return 0.0, "loading the model" if self.state == "making" else "waiting"
        level = next((name for name in total if done[name] < total[name]), "saving")
        doing = level if level == "saving" else f"{level} level, {done[level]:,} of {total[level]:,} codes"
        return sum(done.values()) / max(1, sum(total.values())), doing


class Studio:
    """Makes songs with the jukebox at `run` into `samples`; `on_song` is called after each."""

    def __init__(self, run: Path, samples: Path, work: Path, on_song: Callable[[], None]) -> None:
        self.run, self.samples, self.work, self.on_song = run, samples, work, on_song
        self.jobs: dict[str, Job] = {}
        self.waiting: Queue[Job | None] = Queue()
        self.lock = Lock()
        self.thread = Thread(target=self._work, name="studio", daemon=True)
        self.thread.start()

    def ask(self, request: dict[str, Any], options: list[str] | None = None) -> Job:
        """Queue a song. ValueError if too many are waiting."""
        if sum(job.state == "waiting" for job in self.jobs.values()) >= MOST_WAITING:
            raise ValueError(f"{MOST_WAITING} songs are waiting already; cancel one or come back later")
        identity = f"studio-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        job = Job({"id": identity, **request}, self.work / identity, options or [])
        job.folder.mkdir(parents=True, exist_ok=True)
        write_whole(job.folder / "request.json", json.dumps([job.request]).encode())
        self.jobs[identity] = job
        self.waiting.put(job)
        return job

    def cancel(self, identity: str) -> Job:
        """Take a song out of the queue, or end its process."""
        job = self.jobs.get(identity)
        if job is None:
            raise ValueError("there is no such song")
        with self.lock:
            job.cancelled = True
            if job.state == "waiting":
                job.state, job.reason = "cancelled", "Cancelled before it began."
            elif job.process:
                end(job.process)
        return job

    def newest(self) -> list[Job]:
        return list(self.jobs.values())[: -SHOWN - 1 : -1]

    def close(self) -> None:
        """End what runs; nothing waits any more."""
        for job in self.jobs.values():
            if job.state in ("waiting", "making"):
                self.cancel(job.id)
        self.waiting.put(None)
        self.thread.join(timeout=2 * PATIENCE)

    def _work(self) -> None:
        while job := self.waiting.get():
            try:
                self._make(job)
            except Exception as error:  # whatever it is, the next song must be made
                job.state, job.reason = "failed", f"{type(error).__name__}: {error}"

    def _make(self, job: Job) -> None:
        log = job.folder / "log.txt"
        with log.open("wb") as output:
            with self.lock:
                if job.state != "waiting":
                    return
                job.state = "making"
                job.process = subprocess.Popen(
                    self.command(job), stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                    env=environment(), start_new_session=True,
                )  # fmt: skip
            status = job.process.wait()
        if status == 0:
            self.on_song()  # before "done", so that whoever reads "done" finds the page
            job.state = "done"
        elif job.cancelled:
            job.state, job.reason = "cancelled", "Cancelled while it was made."
        else:
            job.state, job.reason = "failed", last_line(log) or f"The sampler ended with status {status}."

    def command(self, job: Job) -> list[str]:
        asked, progress = job.folder / "request.json", job.folder / "progress.json"
        sample = [sys.executable, "-m", "megajukebox.sample", str(self.run), "--requests", str(asked)]
        return [*sample, "--out", str(self.samples), "--progress", str(progress), *job.options]


def end(process: subprocess.Popen) -> None:
    """Ask a process and its children to end, and soon after end them."""

    def kill() -> None:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            signalled(process, signal.SIGKILL)

    signalled(process, signal.SIGTERM)
    Thread(target=kill, daemon=True).start()


def signalled(process: subprocess.Popen, sign: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, sign)  # its own session, so the group is its alone


def last_line(log: Path) -> str:
    """The last thing a process said: with the entries of this package, the reason in one line."""
    said = log.read_bytes()[-TAIL:].decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(said) if line.strip()), "")
