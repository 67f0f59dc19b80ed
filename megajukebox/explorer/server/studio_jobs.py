"""The Studio's queue: one song at a time, made by a process that keeps the model loaded in between (makers.py).

    waiting -> making -> done | failed | cancelled

The server never imports a model: whatever happens to a song, the pages stay up, and the next song gets a new process.
"""

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from threading import Lock, Thread, Timer
from typing import Any

from megajukebox.common.files import write_atomic
from megajukebox.explorer.server.sampler_process import SamplerDied, SamplerProcess, Start, sampling

MOST_WAITING = 20
SHOWN = 50  # songs of the list; older ones are in the folder
PATIENCE = 10.0  # seconds that a song has to stop by itself before its process is ended
IDLE_MINUTES = 10.0  # without a song, after which the model is let go


@dataclass
class Job:
    """One song asked for; `request` is what the `sample` entry would be given."""

    request: dict[str, Any]
    folder: Path  # of its request, its progress, and STOP once it is to stop
    samplers: list[str] = field(default_factory=list)
    asked: float = field(default_factory=time.time)
    state: str = "waiting"
    reason: str = ""
    cancelled: bool = False

    @property
    def id(self) -> str:
        return self.request["id"]

    @property
    def stop(self) -> Path:
        return self.folder / "STOP"

    @property
    def told(self) -> Path:
        return self.folder / "progress.json"

    def progress(self) -> tuple[float, str]:
        """(share of all codes, what is being made)."""
        try:
            told = json.loads(self.told.read_text())
            done, total = told["done"], told["total"]
        except (OSError, ValueError, KeyError):
            return 0.0, "loading the model" if self.state == "making" else "waiting"
        level = next((name for name in total if done[name] < total[name]), "saving")
        doing = (
            level
            if level == "saving"
            else f"{level} level, {done[level]:,} of {total[level]:,} codes"
        )
        return sum(done.values()) / max(1, sum(total.values())), doing


class Studio:
    """Makes songs with the jukebox at `run` into `samples`; `on_song` is called after each.

    `start` gives the command of a process for some samplers; after `idle_minutes` without a song it is ended.
    """

    def __init__(
        self, run: Path, samples: Path, work: Path, on_song: Callable[[], None],
        idle_minutes: float = IDLE_MINUTES, start: Start = sampling, patience: float = PATIENCE,
    ) -> None:  # fmt: skip
        self.samples, self.work, self.on_song, self.patience = samples, work, on_song, patience
        self.idle_minutes = idle_minutes
        self.maker = SamplerProcess(lambda samplers: start(run, samplers), work / "maker.log")
        self.jobs: dict[str, Job] = {}
        self.waiting: Queue[Job | None] = Queue()
        self.lock = Lock()
        self.closed = False
        self.thread = Thread(target=self._work, name="studio", daemon=True)
        self.thread.start()

    def ask(self, request: dict[str, Any], samplers: list[str] | None = None) -> Job:
        """Queue a song. ValueError if too many are waiting."""
        if sum(job.state == "waiting" for job in self.jobs.values()) >= MOST_WAITING:
            raise ValueError(
                f"{MOST_WAITING} songs are waiting already; cancel one or come back later"
            )
        identity = f"studio-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        job = Job({"id": identity, **request}, self.work / identity, samplers or [])
        job.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(job.folder / "request.json", json.dumps([job.request]).encode())
        self.jobs[identity] = job
        self.waiting.put(job)
        return job

    def cancel(self, identity: str) -> Job:
        """Take a song out of the queue, or stop it: the model stays loaded, unless the song does not stop in time."""
        job = self.jobs.get(identity)
        if job is None:
            raise ValueError("there is no such song")
        with self.lock:
            job.cancelled = True
            if job.state == "waiting":
                job.state, job.reason = "cancelled", "Cancelled before it began."
            elif job.state == "making" and not job.stop.exists():
                job.stop.touch()
                timer = Timer(self.patience, self._end, (job,))
                timer.daemon = True
                timer.start()
        return job

    def newest(self) -> list[Job]:
        return list(self.jobs.values())[: -SHOWN - 1 : -1]

    def model(self) -> dict[str, Any]:
        """Whether the model is loaded, what it takes and for how long it stays, for the page."""
        return {**self.maker.facts(), "idle_minutes": self.idle_minutes}

    def close(self) -> None:
        """End what runs; nothing waits any more."""
        self.closed = True
        for job in self.jobs.values():
            if job.state in ("waiting", "making"):
                self.cancel(job.id)
        self.maker.end()
        self.waiting.put(None)
        self.thread.join(timeout=self.patience)
        self.maker.end()

    def _end(self, job: Job) -> None:
        """The process of a song that did not stop."""
        with self.lock:
            if job.state == "making":
                self.maker.end()

    def _work(self) -> None:
        while not self.closed:
            try:
                job = self.waiting.get(timeout=self.idle_minutes * 60 if self.maker.alive else None)
            except Empty:
                self.maker.end()
                continue
            if job is None:
                return
            try:
                self._make(job)
            except Exception as error:  # whatever it is, the next song must be made
                job.state, job.reason = "failed", f"{type(error).__name__}: {error}"

    def _make(self, job: Job) -> None:
        with self.lock:
            if job.state != "waiting" or self.closed:
                return
            job.state = "making"
        paths = {"out": str(self.samples), "progress": str(job.told), "stop": str(job.stop)}
        try:
            answer = self.maker.make(job.samplers, {"request": job.request, **paths})
        except SamplerDied as death:
            answer = {"state": "failed", "reason": str(death)}
        if answer["state"] == "done":
            self.on_song()  # before "done", so that whoever reads "done" finds the page
        with self.lock:
            job.state, job.reason = ended(job, answer)


def ended(job: Job, answer: dict[str, Any]) -> tuple[str, str]:
    """(state, reason) of a song from what its process answered."""
    if answer["state"] == "done":
        return "done", ""
    if job.cancelled:
        return "cancelled", "Cancelled while it was made."
    return "failed", answer["reason"]
