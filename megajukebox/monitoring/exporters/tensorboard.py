"""Copies what run folders say to TensorBoard and Weights & Biases: beside training, never inside a step of it."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megajukebox.common.redaction import redact, redacted
from megajukebox.data.audio import downmix, facts, read
from megajukebox.monitoring.collect.run_reader import find_runs
from megajukebox.monitoring.exporters.spectrogram import picture
from megajukebox.records.events import upgrade_event
from megajukebox.records.jsonl_tail import Tail
from megajukebox.records.metrics import NOT_METRICS, upgrade_row
from megajukebox.records.productive_time import number

log = logging.getLogger(__name__)
DEPTH = 4
AUDIO = (".wav", ".flac", ".ogg")
NEW = {"reinit": "create_new"}  # several runs are open at once
LONGEST = 60  # seconds of a recording that are copied


class MetricSink(Protocol):
    """Where the numbers go."""

    def scalar(self, name: str, value: float, step: int, time: float) -> None: ...
    def audio(self, name: str, wave_T: np.ndarray, rate: int, step: int) -> None: ...
    def text(self, name: str, words: str, step: int) -> None: ...
    def flush(self) -> None: ...


class Copier:
    """Follows one run; what was copied is not copied again.

    A resumed run rewrites its metrics from an earlier step on: steps that were told before are told again, and both
    boards show the later ones.
    """

    def __init__(self, folder: Path, board: MetricSink) -> None:
        self.folder, self.board = folder, board
        self.metrics, self.events = Tail(folder / "metrics.jsonl"), Tail(folder / "events.jsonl")
        self.told: set[tuple[int, str]] = set()
        self.heard: set[Path] = set()

    def copy(self) -> int:
        """Everything new; returns how many records there were."""
        lines, again = self.metrics.new()
        fresh = [line for line in map(upgrade_row, lines) if not (again and self._was_told(line))]
        for line in fresh:
            self._scalars(line)
        events, _ = self.events.new()
        for event in (
            event
            for event in map(upgrade_event, events)
            if event.get("event") not in ("bad_sample", "save")
        ):
            step = int(number(event.get("step")) or 0)
            self.board.text("events", redact(json.dumps(event, ensure_ascii=False)), step)
        recordings = sum(
            self._recording(path) for path in sorted(self.folder.glob("samples/step-*/*"))
        )
        self.board.flush()
        return len(fresh) + len(events) + recordings

    def _was_told(self, line: dict[str, Any]) -> bool:
        return (
            int(number(line.get("step")) or 0),
            str(line.get("split")) + str(line.get("time")),
        ) in self.told

    def _scalars(self, line: dict[str, Any]) -> None:
        step, when, split = (
            number(line.get("step")),
            number(line.get("time")),
            str(line.get("split", "train")),
        )
        if step is None:
            return
        self.told.add((int(step), split + str(line.get("time"))))
        for name, value in line.items():
            finite = number(value)
            if name not in NOT_METRICS and finite is not None:
                self.board.scalar(f"{split}/{name}", finite, int(step), when or 0.0)

    def _recording(self, path: Path) -> bool:
        """One file of samples/step-*/, once; what leads out of the run is left alone."""
        digits = path.parent.name.removeprefix("step-")
        inside = path.resolve().is_relative_to(self.folder.resolve())
        if path in self.heard or path.suffix not in AUDIO or not digits.isdecimal() or not inside:
            return False
        self.heard.add(path)
        try:
            rate = facts(path).sample_rate
            wave_T = downmix(read(path, rate))
        except (ValueError, OSError) as error:
            log.warning("%s is left out: %s", path.name, error)
            return False
        self.board.audio(path.stem, wave_T[: LONGEST * rate], rate, int(digits))
        return True


class TensorBoard:
    """Event files of one run in `folder`."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def scalar(self, name: str, value: float, step: int, time: float) -> None:
        self.writer.add_scalar(name, value, step, walltime=time)

    def audio(self, name: str, wave_T: np.ndarray, rate: int, step: int) -> None:
        self.writer.add_audio(name, wave_T[None], step, sample_rate=rate)
        self.writer.add_image(f"{name}/spectrogram", picture(wave_T, rate), step, dataformats="HWC")

    def text(self, name: str, words: str, step: int) -> None:
        self.writer.add_text(name, words.replace("<", "&lt;"), step)

    def flush(self) -> None:
        self.writer.flush()


class WeightsAndBiases:
    """One run there. Offline runs cannot be resumed, so every start of the copier makes a new one of all steps."""

    def __init__(self, project: str, name: str, folder: Path, settings: dict[str, Any]) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE", "offline")
        self.run = wandb.init(
            project=project, name=name, dir=str(folder), config=redacted(settings), mode=mode, **NEW
        )
        self.wandb, self.step, self.pending = wandb, 0, {}  # type: ignore[var-annotated]

    def scalar(self, name: str, value: float, step: int, time: float) -> None:
        self._at(step)
        self.pending[name] = value

    def audio(self, name: str, wave_T: np.ndarray, rate: int, step: int) -> None:
        self.pending[name] = self.wandb.Audio(wave_T, sample_rate=rate, caption=f"step {step}")

    def text(self, name: str, words: str, step: int) -> None:
        """Events are not numbers; W&B has no place for them but its log."""

    def _at(self, step: int) -> None:
        """W&B drops what is told of a step before the last one, so all of a step goes at once."""
        if step > self.step and self.pending:
            self.flush()
        self.step = max(step, self.step)

    def flush(self) -> None:
        if self.pending:
            self.run.log(self.pending, step=self.step)
        self.pending = {}


def runs_in(folders: list[Path]) -> Iterator[tuple[str, Path]]:
    """Name and folder of every run."""
    for root in folders:
        for path in find_runs(root, DEPTH):
            yield (str(path.relative_to(root)) if path != root else path.resolve().name), path
