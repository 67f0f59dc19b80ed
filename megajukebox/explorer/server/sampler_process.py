"""The process that generates the Studio's songs: started for the first of them, kept for the next, ended from here."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

from megajukebox.common.child_processes import child_environment, module_command
from megajukebox.common.files import create_new, make_private_folder
from megajukebox.common.untrusted_files import open_inside

TERMINATE_SECONDS = 5.0  # between asking a process to end and killing it
LOG_TAIL_BYTES = 2000  # of a dead process, to look for its last line

ProcessCommand = Callable[[Path, list[str]], list[str]]  # runs, samplers -> the command


def sampler_command(runs: Path, samplers: list[str]) -> list[str]:
    """The command that starts sampling/worker.py."""
    return module_command("megajukebox.sampling.worker", str(runs), *samplers)


class SamplerDied(Exception):
    """The process ended before it answered; the message is for the reader of the page."""


class SamplerProcess:
    """One process at a time, for one choice of samplers: another choice replaces it."""

    def __init__(self, command: Callable[[list[str]], list[str]], log: Path) -> None:
        self.command = command
        self.log = log
        self.process: subprocess.Popen[str] | None = None
        self.samplers: list[str] = []
        self.last_answer: dict[str, Any] = {}
        self.songs = 0
        self.lock = Lock()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def generate(self, samplers: list[str], order: dict[str, Any]) -> dict[str, Any]:
        """Send an order to the process and wait for its answer.

        Raises:
            SamplerDied: the process ended instead.
        """
        if not self.alive or samplers != self.samplers:
            self.start(samplers)
        process = self.process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:  # it ended before it could read
            answer = ""
        if not answer:
            raise SamplerDied(death_reason(process.wait(), self.log))
        self.last_answer = json.loads(answer)
        self.songs += 1
        return self.last_answer

    def status(self) -> dict[str, Any]:
        """Whether the model is loaded, how many songs it generated, and the bytes of memory it takes."""
        answer = self.last_answer if self.alive else {}
        return {
            "loaded": self.alive,
            "songs": self.songs,
            "memory": answer.get("memory", 0),
            "gpu_memory": answer.get("gpu_memory", 0),
        }

    def start(self, samplers: list[str]) -> None:
        """Start the process; the one before it ends."""
        self.end()
        work = make_private_folder(self.log.parent)
        with self.lock, create_new(self.log) as log:
            self.process = subprocess.Popen(
                self.command(samplers),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=child_environment(),
                cwd=work,  # ours alone: before Python 3.11, modules are looked for there first
                start_new_session=True,
            )
        self.samplers = samplers
        self.last_answer = {}
        self.songs = 0

    def end(self) -> None:
        """End the process if there is one: it has nothing to save."""
        with self.lock:
            process = self.process
            if process is None or process.poll() is not None:
                return
            process.terminate()
            try:
                process.wait(TERMINATE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def death_reason(status: int, log: Path) -> str:
    """Why a process ended: the signal, or the last line of its log."""
    if status < 0:
        name = signal.Signals(-status).name
        hint = "; often too little memory" if name == "SIGKILL" else ""
        return f"The sampler was ended by {name}{hint}. The next song loads the model again."
    with open_inside(log.parent, log.name) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
        lines = file.read(LOG_TAIL_BYTES).decode(errors="replace").splitlines()
    for line in reversed(lines):
        if line.strip():
            return line.strip()
    return f"The sampler ended with status {status}."
