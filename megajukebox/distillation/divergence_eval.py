"""Evaluation of a student in training: divergences from its teacher both ways, and bits per code of held-out songs."""

# B windows
from collections.abc import Iterable
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
from megajukebox.models.prior import Prior
from megajukebox.models.student import Student
from megajukebox.sampling.levels.level_windows import to_device


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
        values: dict[str, list[Tensor]] = {
            "kl_forward": [],
            "kl_reverse": [],
            "bits_per_code_of_songs": [],
            "teacher_bits_per_code_of_songs": [],
        }
        seed = self.first_seed
        for stored in self.teacher_batches:
            batch = to_device(stored, device)
            seeds = list(range(seed, seed + len(batch["codes"])))
            seed += len(seeds)
            values["kl_forward"].append(forward_gap(model, batch))
            reverse = reverse_gap(model, self.teacher, batch, seeds, self.sampling)
            values["kl_reverse"].append(reverse)
        for stored in self.song_batches:
            batch = to_device(stored, device)
            values["bits_per_code_of_songs"].append(student_bits(model, batch).mean(1))
            values["teacher_bits_per_code_of_songs"].append(teacher_bits(self.teacher, batch))
        return {name: join_windows(parts) for name, parts in values.items()}


def teacher_bits(teacher: Prior, batch: dict) -> Tensor:
    """[B] bits per code of songs' own codes, at temperature 1."""
    return bits_of(teacher_log_p(teacher, batch, UNCHANGED), batch["codes"]).mean(1)


def join_windows(parts: Iterable[Tensor]) -> Tensor:
    """The values of all batches' windows as one tensor on the CPU."""
    tensors = list(parts)
    return torch.cat(tensors).cpu() if tensors else torch.zeros(0)
