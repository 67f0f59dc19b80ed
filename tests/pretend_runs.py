"""Run folders as training writes them, without training: a clock of their own, known losses, restarts and waits."""

import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megajukebox.data.files import write_whole
from megajukebox.monitoring.metrics import RunLog

START = 1_700_000_000.0
CODES = 32


@dataclass
class PretendRun:
    """A run that only writes. `useful` is the truth: seconds of steps that were kept, as they stand."""

    folder: Path
    stage: str = "top_prior"
    steps: int = 1000
    step_seconds: float = 1.0
    data_seconds: float = 0.0
    log_every: int = 10
    save_every: int = 100
    ranks: int = 2
    now: float = START
    accounts: bool = True  # False: an older run, whose processes kept no account of their time
    step: int = 0
    saved: int = 0
    loss: float = 5.0
    useful: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)
    kept: list[tuple[int, float]] = field(default_factory=list)  # step, its seconds; of steps not lost so far
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.log = RunLog(self.folder, writes=True, clock=lambda: self.now)
        training = {"steps": self.steps, "save_every": self.save_every, "log_every": self.log_every, "seed": 0}
        settings = {
            "stage": self.stage,
            "preset": {"name": "pretend", "training": {self.stage: training}},
            "model": {"codes": CODES},
            "ds_config": {"train_micro_batch_size_per_gpu": 2},
            "facts": {},
            "made_by": {"version": "1", "commit": "abc", "command": "train"},
        }
        write_whole(self.folder / "run.yaml", yaml.safe_dump(settings).encode())

    def start(self, init: float = 20.0, restore: float = 5.0) -> "PretendRun":
        """A process starts: from nothing, or from the last checkpoint."""
        self.now += init
        self.spent = {"init": init, "productive": 0.0, "data_wait": 0.0, "ckpt_save": 0.0, "eval": 0.0}
        self.step = self.saved
        self.kept = [(step, seconds) for step, seconds in self.kept if step <= self.saved]
        self.log.forget_after(self.saved)
        if self.saved:
            self.now += restore
            self.spent["ckpt_restore"] = restore
        self.log.event("resume" if self.saved else "start", self.saved)
        return self

    def train(self, steps: int, noise: float = 0.0, seed: int = 0, **metrics: float) -> "PretendRun":
        draw = random.Random(seed)
        for _ in range(steps):
            seconds = self.step_seconds * (1 + noise * draw.uniform(-1, 1))
            self.now += seconds + self.data_seconds
            self.spent["productive"] += seconds
            self.spent["data_wait"] += self.data_seconds
            self.step += 1
            self.kept.append((self.step, seconds))
            if self.step % self.log_every == 0 or self.step == 1:
                self.write(seconds, draw, metrics)
            if self.step % self.save_every == 0:
                self.save()
        return self

    def write(self, seconds: float, draw: random.Random, metrics: dict[str, float]) -> None:
        account = {f"time_{phase}_seconds": spent for phase, spent in self.spent.items()} if self.accounts else {}
        whole = seconds + self.data_seconds
        line = {
            "loss": self.loss + 0.01 * draw.gauss(0, 1), "gradient_norm": 0.5, "learning_rate": 1e-3,
            "bits_per_code": self.loss, "audio_seconds_per_second": 8 / whole, "stall_share": self.data_seconds / whole,
            "skipped": 0, "step_seconds": whole, "data_seconds": self.data_seconds, "tokens_per_second": 512 / whole,
        }  # fmt: skip
        self.log.metrics(self.step, "train", line | account | self.extra | metrics)

    def save(self, seconds: float = 2.0, size: int = 1000) -> "PretendRun":
        self.now += seconds
        self.spent["ckpt_save"] += seconds
        folder = self.folder / "checkpoints" / f"step-{self.step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state.bin").write_bytes(b"\0" * size)
        manifest = {"step": self.step, "files": {"state.bin": {"bytes": size, "sha256": ""}}}
        write_whole(folder / "manifest.json", json.dumps(manifest).encode())
        os.utime(folder / "manifest.json", (self.now, self.now))
        self.saved = self.step
        self.log.event("save", self.step, seconds=seconds)
        return self

    def beat(self, **of_rank: dict[str, Any]) -> "PretendRun":
        """Heartbeats of all ranks at this moment; `r1={"time": ...}` changes what rank 1 says, None leaves it out."""
        for rank in range(self.ranks):
            change = of_rank.get(f"r{rank}", {})
            if change is None:
                continue
            beat = {
                "rank": rank, "host": f"node{rank}", "pid": 100 + rank, "time": self.now, "step": self.step,
                "section": "step", "section_since": self.now, "step_seconds": self.step_seconds,
                "own_seconds": self.step_seconds,
            }  # fmt: skip
            path = self.folder / "heartbeats" / f"rank-{rank:05d}.json"
            path.parent.mkdir(exist_ok=True)
            write_whole(path, json.dumps(beat | change).encode())
        return self

    def die(self, lost: float = 0.5, away: float = 60.0) -> "PretendRun":
        """Killed within a step; nothing happens for `away` seconds."""
        self.now += lost + away
        return self

    def end(self, event: str = "done", **reason: Any) -> "PretendRun":
        self.log.event(event, self.step, **reason)
        return self

    @property
    def truth(self) -> float:
        """Goodput: seconds of kept steps since the first start, over the time since then."""
        return sum(seconds for _, seconds in self.kept) / (self.now - START)
