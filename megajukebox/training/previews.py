"""Samples from a run that trains: `megajukebox preview` in a process of its own, which the training never waits for.

Training imports nothing of sampling: the two meet in files, the weights that were just exported and the samples.
"""

import os
import subprocess
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from megajukebox.records.events import PreviewWritten
from megajukebox.records.run_log import RunLog

PLACES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = 600  # seconds that the end of a run waits for its last samples


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
    """Rank 0 starts one after a save that is due; a step whose turn comes while one still runs is left out."""

    def __init__(
        self, run: Path, settings: PreviewSettings, log: RunLog, first: int, active: bool
    ) -> None:
        self.run, self.settings, self.log = run, settings, log
        self.every = settings.every if active else 0
        self.last = first
        self.process: subprocess.Popen | None = None

    def after_save(self, step: int) -> None:
        """The weights of `step` are exported."""
        if not self.every or step // self.every <= self.last // self.every:
            return
        self.last = step
        if self.process and self.process.poll() is None:
            reason = "left out: the samples before are still being made"
            self.log.event(PreviewWritten(step=step, reason=reason))
            return
        self._tell()
        out = self.run / "samples" / f"step-{step:08d}"
        out.mkdir(parents=True, exist_ok=True)
        runs = self.settings.runs or str(self.run.parent)
        command = [
            sys.executable,
            "-m",
            "megajukebox.cli",
            "preview",
            str(self.run),
            "--runs",
            runs,
            "--out",
            str(out),
        ]
        command += ["--seconds", str(self.settings.seconds)]
        alone = {
            name: value
            for name, value in os.environ.items()
            if name not in PLACES and "SLURM" not in name
        }
        with (out / "listen.log").open("w") as heard:
            self.process = subprocess.Popen(
                command, env=alone, stdout=heard, stderr=heard, preexec_fn=_kindly
            )
        self.step, self.out = step, out

    def end(self, wait: bool) -> None:
        """Wait for what is being made, within reason, or end it; tell what came of it."""
        if self.process:
            try:
                self.process.wait(PATIENCE if wait else 0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self._tell()

    def _tell(self) -> None:
        if self.process is None:
            return
        if self.process.returncode:
            said = (self.out / "listen.log").read_text().strip().splitlines()
            reason = f"failed: {said[-1] if said else self.process.returncode}"
            self.log.event(PreviewWritten(step=self.step, reason=reason))
        else:
            folder = str(self.out.relative_to(self.run))
            self.log.event(PreviewWritten(step=self.step, folder=folder))
        self.process = None


def _kindly() -> None:
    os.nice(10)
