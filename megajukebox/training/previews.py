"""Preview samples of a run that trains, by `megajukebox preview` in a process that training never waits for.

Training imports nothing of sampling: the two meet in files, the weights that were just exported and the samples.
"""

import os
import subprocess
from contextlib import suppress
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from megajukebox.common.child_processes import child_environment, module_command
from megajukebox.common.files import create_new
from megajukebox.common.untrusted_files import read_inside
from megajukebox.records.events import PreviewWritten
from megajukebox.records.run_log import RunLog

END_TIMEOUT_SECONDS = 600  # that the end of a run waits for its last preview
NICENESS = 10  # training goes first
LOG_FILE = "preview.log"


class PreviewSettings(BaseModel):
    """`training.<stage>.previews`: a few seconds sampled from a prior while it trains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(
        default=0, ge=0, description="sample at the save after so many steps; 0: never"
    )
    seconds: float = Field(default=4.0, gt=0)
    runs: str | None = Field(
        default=None,
        description="folder of the runs to sample with; else the one that the run lies in",
    )


class PreviewSampler:
    """Starts a preview after a save that is due; while one still runs, the next one is left out.

    `last_step` and `run` are of the run; `active` is whether this process makes previews at all.
    """

    def __init__(
        self, run: Path, settings: PreviewSettings, log: RunLog, last_step: int, active: bool
    ) -> None:
        self.run = run
        self.settings = settings
        self.log = log
        self.every = settings.every if active else 0
        self.last_step = last_step
        self.process: subprocess.Popen | None = None

    def after_save(self, step: int) -> None:
        """The weights of `step` are exported: sample from them, if it is time."""
        if not self.every or step // self.every <= self.last_step // self.every:
            return
        self.last_step = step
        if self.process and self.process.poll() is None:
            reason = "left out: the samples before are still being made"
            self.log.event(PreviewWritten(step=step, reason=reason))
            return
        self._log_result()
        self.step = step
        self.out = self.run / "samples" / f"step-{step:08d}"
        self.out.mkdir(parents=True, exist_ok=True)
        runs = self.settings.runs or str(self.run.parent)
        command = module_command("megajukebox.cli", "preview", str(self.run))
        command += ["--runs", runs, "--out", str(self.out)]
        command += ["--seconds", str(self.settings.seconds)]
        with create_new(self.out / LOG_FILE) as output:
            self.process = subprocess.Popen(
                command,
                env=child_environment(),  # without what a launcher tells a rank: it is none
                stdout=output,
                stderr=output,
                preexec_fn=partial(os.nice, NICENESS),
            )

    def end(self, wait: bool) -> None:
        """Log the last preview: with `wait` once it is done, within END_TIMEOUT_SECONDS; else kill it."""
        if not self.process:
            return
        try:
            self.process.wait(END_TIMEOUT_SECONDS if wait else 0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log_result()

    def _log_result(self) -> None:
        if self.process is None:
            return
        if self.process.returncode:
            lines = []
            with suppress(OSError):
                lines = (
                    read_inside(self.out, LOG_FILE).decode(errors="replace").strip().splitlines()
                )
            reason = f"failed: {lines[-1] if lines else self.process.returncode}"
            self.log.event(PreviewWritten(step=self.step, reason=reason))
        else:
            folder = str(self.out.relative_to(self.run))
            self.log.event(PreviewWritten(step=self.step, folder=folder))
        self.process = None
