"""What a student in training is worth: divergences from its teacher both ways, and bits on songs it never heard."""

# B windows
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megajukebox.distillation.divergence import (
    PLAIN,
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
    """Measures a student on held-out windows: those that the teacher sampled, and those of the songs."""

    teacher: Prior
    manner: SamplingSettings
    taught: list[dict]  # batches of data/stream/teacher_dataset.py, this rank's
    real: list[dict]  # batches of data/stream/code_dataset.py
    first_seed: int = 0  # ranks sample their own windows

    def __call__(self, model: nn.Module) -> dict[str, Tensor]:
        """By name, a value [windows] for each window of this rank."""
        assert isinstance(model, Student)
        model.eval()
        device = next(self.teacher.parameters()).device
        taught, real = (
            [to_device(batch, device) for batch in some] for some in (self.taught, self.real)
        )
        return {
            "kl_forward": together(forward_gap(model, batch) for batch in taught),
            "kl_reverse": together(self._reverse(model, taught)),
            "bits_per_code_of_songs": together(
                student_bits(model, batch).mean(1) for batch in real
            ),
            "teacher_bits_per_code_of_songs": together(
                teacher_bits(self.teacher, batch) for batch in real
            ),
        }

    def _reverse(self, model: Student, batches: list[dict]) -> Iterator[Tensor]:
        seed = self.first_seed
        for batch in batches:
            seeds = list(range(seed, seed + len(batch["codes"])))
            yield reverse_gap(model, self.teacher, batch, seeds, self.manner)
            seed += len(seeds)


def teacher_bits(teacher: Prior, batch: dict) -> Tensor:
    """[B] bits per code of songs' own codes, at temperature 1."""
    return bits_of(teacher_log_p(teacher, batch, PLAIN), batch["codes"]).mean(1)


def together(parts: Iterable[Tensor]) -> Tensor:
    found = list(parts)
    return torch.cat(found).cpu() if found else torch.zeros(0)
