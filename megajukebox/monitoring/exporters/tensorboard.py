"""Copies what run folders hold to TensorBoard and Weights & Biases: beside training, never inside a step of it."""

import json
import logging
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib import colormaps

from megajukebox.common.plain_text import plain
from megajukebox.common.redaction import redact, redacted
from megajukebox.common.untrusted_files import open_inside
from megajukebox.data.audio import facts, read_mono
from megajukebox.data.spectra import frame_spectra
from megajukebox.records.events import BadSampleSkipped, CheckpointSaved, upgrade_event
from megajukebox.records.jsonl_tail import Tail
from megajukebox.records.metrics import NOT_METRICS, TRAIN, upgrade_row
from megajukebox.records.productive_time import number
from megajukebox.records.run_log import EVENTS_FILE, METRICS_FILE

log = logging.getLogger(__name__)

AUDIO = (".wav", ".flac", ".ogg")
NOT_COPIED = (BadSampleSkipped.name, CheckpointSaved.name)  # too many to read
MAX_SECONDS = 60  # of a recording that are copied
# Of the spectrogram.
WINDOW = 1024  # samples
HEIGHT = 256  # rows, the lowest frequencies
MAX_WIDTH = 1200
FLOOR_DB = -80.0  # below the loudest: black


class MetricSink(Protocol):
    """Where the numbers go."""

    def scalar(self, name: str, value: float, step: int, time: float) -> None: ...
    def audio(self, name: str, wave_T: np.ndarray, rate: int, step: int) -> None: ...
    def text(self, name: str, words: str, step: int) -> None: ...
    def flush(self) -> None: ...


class Copier:
    """Follows one run; what was copied is not copied again.

    A resumed run rewrites its metrics from an earlier step on: those steps are copied again, and both boards show the
    later values.
    """

    def __init__(self, folder: Path, sink: MetricSink) -> None:
        self.folder = folder
        self.sink = sink
        self.metrics = Tail(folder / METRICS_FILE)
        self.events = Tail(folder / EVENTS_FILE)
        self.copied_rows: set[tuple[str, ...]] = set()
        self.copied_audio: set[Path] = set()

    def copy(self) -> int:
        """Copy everything new; returns how many records there were."""
        rows, replaced = self.metrics.new()
        copied = 0
        for row in map(upgrade_row, rows):
            key = (str(row.get("step")), str(row.get("split")), str(row.get("time")))
            if not (replaced and key in self.copied_rows):
                self._copy_row(row, key)
                copied += 1
        events, _ = self.events.new()
        for event in map(upgrade_event, events):
            copied += 1
            if event.get("event") not in NOT_COPIED:
                step = int(number(event.get("step")) or 0)
                self.sink.text("events", redact(json.dumps(event, ensure_ascii=False)), step)
        for path in sorted(self.folder.glob("samples/step-*/*")):
            copied += self._copy_audio(path)
        self.sink.flush()
        return copied

    def _copy_row(self, row: dict[str, Any], key: tuple[str, ...]) -> None:
        step = number(row.get("step"))
        if step is None:
            return
        self.copied_rows.add(key)
        for name, value in row.items():
            finite = number(value)
            if name not in NOT_METRICS and finite is not None:
                time = number(row.get("time")) or 0.0
                self.sink.scalar(f"{row.get('split', TRAIN)}/{name}", finite, int(step), time)

    def _copy_audio(self, path: Path) -> bool:
        """One file of samples/step-*/, once; what leads out of the run is left alone."""
        digits = path.parent.name.removeprefix("step-")
        known = path in self.copied_audio or path.suffix not in AUDIO
        if known or not digits.isdecimal():
            return False
        self.copied_audio.add(path)
        try:
            with open_inside(self.folder, path.relative_to(self.folder)) as file:
                rate = facts(file).sample_rate
                wave_T = read_mono(file, rate)
        except (ValueError, OSError) as error:
            log.warning("%s is left out: %s", plain(path.name), plain(str(error)))
            return False
        self.sink.audio(path.stem, wave_T[: MAX_SECONDS * rate], rate, int(digits))
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
        image = spectrogram_image(wave_T, rate)
        self.writer.add_image(f"{name}/spectrogram", image, step, dataformats="HWC")

    def text(self, name: str, words: str, step: int) -> None:
        self.writer.add_text(name, words.replace("<", "&lt;"), step)

    def flush(self) -> None:
        self.writer.flush()


class WeightsAndBiases:
    """One run there. Offline runs cannot be resumed, so every start of the copier makes a new one of all steps."""

    def __init__(self, project: str, name: str, folder: Path, settings: dict[str, Any]) -> None:
        import wandb

        self.run = wandb.init(
            project=project,
            name=name,
            dir=str(folder),
            config=redacted(settings),
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="create_new",  # several runs are open at once
        )
        self.wandb = wandb
        self.step = 0
        self.pending: dict[str, Any] = {}  # of `step`

    def scalar(self, name: str, value: float, step: int, time: float) -> None:
        # W&B drops what comes for a step before the last one, so all of a step goes at once.
        if step > self.step:
            self.flush()
        self.step = max(step, self.step)
        self.pending[name] = value

    def audio(self, name: str, wave_T: np.ndarray, rate: int, step: int) -> None:
        self.pending[name] = self.wandb.Audio(wave_T, sample_rate=rate, caption=f"step {step}")

    def text(self, name: str, words: str, step: int) -> None:
        """Events are not numbers; W&B takes them in its log alone."""

    def flush(self) -> None:
        if self.pending:
            self.run.log(self.pending, step=self.step)
        self.pending = {}


def spectrogram_image(wave_T: np.ndarray, rate: int) -> np.ndarray:
    """RGB [height, width, 3] uint8 of a mono recording [T]: time to the right, frequency upwards, loud is bright."""
    hop = max(WINDOW // 4, len(wave_T) // MAX_WIDTH)
    padded = np.pad(wave_T.astype(np.float32), (0, WINDOW))
    starts = np.arange(0, len(padded) - WINDOW + 1, hop)
    spectra = frame_spectra(padded, starts, np.hanning(WINDOW))
    loudness = 20 * np.log10(np.abs(spectra).T[:HEIGHT] + 1e-9)  # dB [frequency, time]
    share = np.clip((loudness - loudness.max() - FLOOR_DB) / -FLOOR_DB, 0, 1)
    return (colormaps["magma"](share[::-1])[..., :3] * 255).astype(np.uint8)
