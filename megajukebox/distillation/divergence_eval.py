"""Evaluation of a student in training: divergences from its teacher both ways, and bits per code of held-out songs."""

# B windows
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megajukebox.distillation.divergence import (
    UNCHANGED,
    SamplingSettings,
    bits_of,
    forward_gap,
    reverse_gap,
    student_bits,
    teacher_log_p,
)
from megajukebox.distillation.teacher_sampling import to_device
from megajukebox.models.prior import Prior
from megajukebox.models.student import Student


@dataclass(frozen=True)
class DivergenceEvaluator:
    """Evaluates a student on this rank's held-out windows: those that the teacher sampled, and those of songs."""

    teacher: Prior
    sampling: SamplingSettings
    teacher_batches: list[dict]  # of data/stream/teacher_dataset.py
    song_batches: list[dict]  # of data/stream/code_dataset.py
    first_seed: int = 0  # ranks sample windows of their own

    def __call__(self, model: nn.Module) -> dict[str, Tensor]:
        """By metric, a value [windows] for each window of this rank."""
        assert isinstance(model, Student)
        model.eval()
        device = next(self.teacher.parameters()).device
        of_teacher = [to_device(batch, device) for batch in self.teacher_batches]
        of_songs = [to_device(batch, device) for batch in self.song_batches]
        student_song_bits = (student_bits(model, batch).mean(1) for batch in of_songs)
        teacher_song_bits = (teacher_bits(self.teacher, batch) for batch in of_songs)
        return {
            "kl_forward": join_windows(forward_gap(model, batch) for batch in of_teacher),
            "kl_reverse": join_windows(self._reverse_gaps(model, of_teacher)),
            "bits_per_code_of_songs": join_windows(student_song_bits),
            "teacher_bits_per_code_of_songs": join_windows(teacher_song_bits),
        }

    def _reverse_gaps(self, model: Student, batches: list[dict]) -> Iterator[Tensor]:
        seed = self.first_seed
        for batch in batches:
            seeds = list(range(seed, seed + len(batch["codes"])))
            yield reverse_gap(model, self.teacher, batch, seeds, self.sampling)
            seed += len(seeds)


def teacher_bits(teacher: Prior, batch: dict) -> Tensor:
    """[B] bits per code of songs' own codes, at temperature 1."""
    return bits_of(teacher_log_p(teacher, batch, UNCHANGED), batch["codes"]).mean(1)


def join_windows(parts: Iterable[Tensor]) -> Tensor:
    """The values of all batches' windows as one tensor on the CPU."""
    tensors = list(parts)
    return torch.cat(tensors).cpu() if tensors else torch.zeros(0)
