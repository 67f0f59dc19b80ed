"""A student as a level sampler: the windows of a song together, those between known on both sides.

An upsampler's windows hang together by the codes above, so they need not wait for each other:

    first   |========|      |========|      |========|       all at once, from the prompt alone
    then          |==------==|    |==------==|               all at once, == known: what the first ones sampled

The top has nothing above it: its windows follow each other, each continuing the one before.
"""

# B songs   M rows (a song and one of its windows)   W codes of a window
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.models.student import Student
from megajukebox.sampling.decoding.cuda_device import indices_on
from megajukebox.sampling.decoding.decoder import PackedPrior
from megajukebox.sampling.levels.autoregressive import JacobiDecoding
from megajukebox.sampling.levels.level_sampler import LevelJob, Progress, window_hop
from megajukebox.sampling.levels.level_windows import (
    WindowRow,
    WindowSpan,
    conditioning_batch,
    window_spans,
)
from megajukebox.sampling.students.student_decoder import StudentTokenSampler, emit

OVERLAP = 1 / 8  # of a window, on either side, that the windows between know
HOP = 1 / 2  # of a window, by which the top's windows move on


@dataclass
class StudentSampler:
    """Samples a level with a student. At the `temperature` of its teacher's windows it samples as it was taught."""

    student: Student
    temperature: float = 1.0
    max_rows: int = 64  # windows in lockstep; bounds the memory
    exact: bool = False

    def __post_init__(self) -> None:
        self.packed = PackedPrior(self.student)

    @torch.inference_mode()
    def sample(self, job: LevelJob, progress: Progress) -> None:
        for phase in phases(self.student.config, job.total):
            rows = []
            known_BT = job.known_BT.cpu()
            for span in phase:
                for song in range(len(job.conditioning)):
                    if not bool(known_BT[song, span.start : span.end].all()):
                        rows.append(WindowRow(song, span))
            for first in range(0, len(rows), self.max_rows):
                self.emit(job, rows[first : first + self.max_rows], progress)

    def emit(self, job: LevelJob, rows: list[WindowRow], progress: Progress) -> None:
        """Sample one window of every row, and write to the job what was not known."""
        device = job.codes_BT.device
        songs = []
        starts = []
        conditioning = []
        for row in rows:
            songs.append(row.song)
            starts.append(row.span.start)
            conditioning.append(job.conditioning[row.song])
        upper = None if job.upper_BU is None else job.upper_BU[songs]
        batch = conditioning_batch(
            self.student.config, conditioning, upper, starts, job.samples, device
        )
        sampler = job.token_sampler.select(indices_on(device, songs))
        sampler = replace(sampler, temperature_B=sampler.temperature_B / self.temperature)
        emitted_MW = emit(
            self.student,
            self.student.conditioning(batch),
            self._windows(job.codes_BT, rows),
            self._windows(job.known_BT, rows),
            StudentTokenSampler(sampler, indices_on(device, starts)),
            packed=self.packed,
        )
        new: Tensor | int = 0
        for row, codes_W in zip(rows, emitted_MW):
            span = row.span
            new = new + job.write(row.song, span.start, codes_W[: span.end - span.start])
        progress(int(new))

    def _windows(self, x_BT: Tensor, rows: list[WindowRow]) -> Tensor:
        """The rows' windows [M, W] of the level; slots past the end of the song are sampled too, and dropped."""
        windows = []
        for row in rows:
            window = x_BT[row.song, row.span.start : row.span.end]
            windows.append(F.pad(window, (0, self.student.config.window - len(window))))
        return torch.stack(windows)


@dataclass
class VerifiedStudent:
    """The teacher's own codes, with the student's as the first draft: passes verify many codes at once.

    Both sample with the same noise, so most of the student's codes are right already.
    """

    student: StudentSampler
    teacher: Prior
    num_draft_tokens: int = 32  # codes that a pass looks at
    exact: bool = True

    def sample(self, job: LevelJob, progress: Progress) -> None:
        draft = replace(
            job,
            codes_BT=job.codes_BT.clone(),
            known_BT=job.known_BT.clone(),
            prompt_BT=job.prompt_BT,
        )
        self.student.sample(draft, lambda count: None)
        job.codes_BT.copy_(draft.codes_BT)  # where nothing is known yet, the first draft
        JacobiDecoding(self.teacher, num_draft_tokens=self.num_draft_tokens).sample(job, progress)


def phases(config: PriorConfig, total: int) -> Iterator[list[WindowSpan]]:
    """Windows that are sampled together, one list after another."""
    if config.upsampler_conditioner is None or total <= config.window:
        for span in window_spans(total, config.window, window_hop(config, HOP)):
            yield [span]
        return
    # Whole rows of the grid, and whole codes of the level above.
    unit = math.lcm(config.window // config.transformer.blocks, config.upsampler_conditioner.ratio)
    overlap = max(unit, int(OVERLAP * config.window) // unit * unit)
    starts = range(0, total - overlap, config.window - overlap)
    for which in (0, 1):
        spans = []
        for start in starts[which::2]:
            spans.append(WindowSpan(start, start, min(start + config.window, total)))
        yield spans
