"""The process that makes the Studio's songs: started for the first of them, kept for the next, and ended from here."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

from megajukebox.explorer.server.uploads import environment

LEAVE = 5.0  # seconds between asking a process to end and ending it
TAIL = 2000  # bytes of what a dead process said, to look for its last line

Start = Callable[[Path, list[str]], list[str]]  # runs, samplers -> the command of a process


def sampling(runs: Path, samplers: list[str]) -> list[str]:
    """The command of the process that sampling/worker.py is."""
    return [sys.executable, "-m", "megajukebox.sampling.worker", str(runs), *samplers]


class SamplerDied(Exception):
    """The process ended before it answered; the message is for the reader of the page."""


class SamplerProcess:
    """One process at a time, for one choice of samplers: another choice replaces it."""

    def __init__(self, command: Callable[[list[str]], list[str]], log: Path) -> None:
        self.command, self.log = command, log
        self.process: subprocess.Popen[str] | None = None
        self.samplers: list[str] = []
        self.told: dict[str, Any] = {}  # with its last answer
        self.songs = 0
        self.lock = Lock()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def make(self, samplers: list[str], order: dict[str, Any]) -> dict[str, Any]:
        """The answer to an order; waits for it. `Died` if the process ended instead."""
        if not self.alive or samplers != self.samplers:
            self._start(samplers)
        process = self.process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:  # it ended before it could read
            answer = ""
        if not answer:
            raise SamplerDied(why(process.wait(), self.log))
        self.told, self.songs = json.loads(answer), self.songs + 1
        return self.told

    def facts(self) -> dict[str, Any]:
        told = self.told if self.alive else {}
        return {
            "loaded": self.alive,
            "songs": self.songs,
            **{n: told.get(n, 0) for n in ("memory", "gpu_memory")},
        }

    def _start(self, samplers: list[str]) -> None:
        self.end()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.lock, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command(samplers), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                text=True, env=environment(), start_new_session=True,
            )  # fmt: skip
        self.samplers, self.told, self.songs = samplers, {}, 0

    def end(self) -> None:
        """End the process if there is one: it has nothing to save."""
        with self.lock:
            process = self.process
            if process is None or process.poll() is not None:
                return
            process.terminate()
            try:
                process.wait(LEAVE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def why(status: int, log: Path) -> str:
    """What is known of a death: the signal, or the last line that was said."""
    if status < 0:
        name = signal.Signals(-status).name
        hint = "; often too little memory" if name == "SIGKILL" else ""
        return f"The sampler was ended by {name}{hint}. The next song loads the model again."
    return last_line(log) or f"The sampler ended with status {status}."


def last_line(log: Path) -> str:
    """The last thing a process said."""
    said = log.read_bytes()[-TAIL:].decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(said) if line.strip()), "")
