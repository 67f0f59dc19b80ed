"""What a teacher and its student say of windows, exactly and in one pass each: likelihoods, and divergences both ways.

    forward  KL(teacher || student): windows that the teacher sampled; its surprisal is stored with them
    reverse  KL(student || teacher): windows that the student samples here

Both are mean differences of log likelihoods over windows, so a confidence interval comes with them.
"""

# B windows   T codes of a window   V vocabulary
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megajukebox.models.conditioners import ALIGNED
from megajukebox.models.prior import Prior
from megajukebox.models.student import LOG_2, Student
from megajukebox.sampling.decoding import gumbel_noise
from megajukebox.sampling.decoding.token_sampling import TokenSampler
from megajukebox.sampling.students.student_decoder import StudentTokenSampler, emit


@dataclass(frozen=True)
class SamplingSettings:
    """How a teacher is sampled; its student is to do so by itself."""

    temperature: float = 0.99
    guidance: float = 1.0


PLAIN = SamplingSettings(1.0)


@torch.inference_mode()
def teacher_log_p(teacher: Prior, batch: dict, manner: SamplingSettings = PLAIN) -> Tensor:
    """Log probabilities [B, T, V] of every code of `batch`, in the given manner."""
    logits = teacher.logits(teacher.tokens(batch), teacher.conditioning(batch))
    if manner.guidance != 1.0:
        untold = teacher.logits(
            teacher.tokens(batch), teacher.conditioning(null_conditioned_batch(batch))
        )
        logits = untold + manner.guidance * (logits - untold)
    prefix = teacher.config.prefix_tokens
    return (logits[:, prefix:, teacher.config.shift :] / manner.temperature).log_softmax(2)


def null_conditioned_batch(batch: dict) -> dict:
    """`batch` with every label and the lyrics left out, as dropout in training leaves them out."""
    named = {
        n: torch.full_like(x, -1 if x.shape[1] > 1 else 0) for n, x in batch["conditions"].items()
    }
    zeros = {name: torch.zeros_like(batch[name]) for name in ("lyrics", *ALIGNED) if name in batch}
    return {**batch, "conditions": named, **zeros}


def bits_of(log_p_BTV: Tensor, codes_BT: Tensor) -> Tensor:
    """The surprisal [B, T] of each code in bits."""
    return -log_p_BTV.gather(2, codes_BT[..., None])[..., 0] / LOG_2


@torch.inference_mode()
def student_bits(student: Student, batch: dict, known_BT: Tensor | None = None) -> Tensor:
    """The student's surprisal [B, T] in bits; nothing is known unless said so."""
    return bits_of(
        student.logits(batch["codes"], student.conditioning(batch), known_BT).log_softmax(2),
        batch["codes"],
    )


@torch.inference_mode()
def forward_gap(student: Student, batch: dict) -> Tensor:
    """[B] bits per code by which each of the teacher's windows surprises the student more than the teacher."""
    return forward_gaps(student, batch).mean(1)


@torch.inference_mode()
def forward_gaps(student: Student, batch: dict) -> Tensor:
    """The same, code by code [B, T]: less than nothing where a student knows what the teacher has yet to draw."""
    return student_bits(student, batch) - batch["teacher_bits"]


@torch.inference_mode()
def sampled(student: Student, batch: dict, seeds: list[int], temperature: float = 1.0) -> Tensor:
    """Codes [B, T] that the student samples, told what `batch` is told."""
    device, like = batch["codes"].device, batch["codes"]
    keys = gumbel_noise.noise_keys(seeds, student.config.level).to(device)
    draw = TokenSampler(keys, torch.full((len(seeds),), temperature, device=device))
    nothing = torch.zeros_like(like, dtype=torch.bool)
    return emit(
        student,
        student.conditioning(batch),
        like,
        nothing,
        StudentTokenSampler(draw, torch.zeros_like(keys)),
    )


@torch.inference_mode()
def reverse_gap(
    student: Student, teacher: Prior, batch: dict, seeds: list[int], manner: SamplingSettings
) -> Tensor:
    """[B] bits per code by which each of the student's windows surprises the teacher more than the student."""
    own = {**batch, "codes": sampled(student, batch, seeds)}
    return (
        bits_of(teacher_log_p(teacher, own, manner), own["codes"]) - student_bits(student, own)
    ).mean(1)


def with_interval(per_window: np.ndarray) -> tuple[float, float]:
    """The mean, and half the width of its 95 % confidence interval (normal; windows are independent)."""
    half = (
        1.96 * per_window.std(ddof=1) / len(per_window) ** 0.5
        if len(per_window) > 1
        else float("nan")
    )
    return float(per_window.mean()), float(half)
