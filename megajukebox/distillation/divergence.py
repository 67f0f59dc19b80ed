"""How far a student is from its teacher: likelihoods of windows, and divergences both ways, exact and in one pass each.

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

Z_95 = 1.96  # normal quantile of a 95 % interval


@dataclass(frozen=True)
class SamplingSettings:
    """How a teacher is sampled; its student imitates that at temperature 1 and without guidance."""

    temperature: float = 0.99
    guidance: float = 1.0  # classifier-free; 1 is none


UNCHANGED = SamplingSettings(1.0)  # the teacher's own distribution


@torch.inference_mode()
def teacher_log_p(teacher: Prior, batch: dict, sampling: SamplingSettings = UNCHANGED) -> Tensor:
    """Log probabilities [B, T, V] of every code of `batch`, as the teacher is sampled."""
    logits = teacher.logits(teacher.tokens(batch), teacher.conditioning(batch))
    if sampling.guidance != 1.0:
        null = teacher.conditioning(null_conditioned_batch(batch))
        null_logits = teacher.logits(teacher.tokens(batch), null)
        logits = null_logits + sampling.guidance * (logits - null_logits)
    prefix = teacher.config.prefix_tokens
    return (logits[:, prefix:, teacher.config.shift :] / sampling.temperature).log_softmax(2)


def null_conditioned_batch(batch: dict) -> dict:
    """`batch` without labels, lyrics and aligned conditions, as dropout in training leaves them out."""
    conditions = {}
    for name, ids in batch["conditions"].items():
        conditions[name] = torch.full_like(ids, -1 if ids.shape[1] > 1 else 0)
    null = {**batch, "conditions": conditions}
    for name in ("lyrics", *ALIGNED):
        if name in batch:
            null[name] = torch.zeros_like(batch[name])
    return null


def bits_of(log_p_BTV: Tensor, codes_BT: Tensor) -> Tensor:
    """The surprisal [B, T] of each code in bits."""
    return -log_p_BTV.gather(2, codes_BT[..., None])[..., 0] / LOG_2


@torch.inference_mode()
def student_bits(student: Student, batch: dict, known_BT: Tensor | None = None) -> Tensor:
    """The student's surprisal [B, T] in bits; without `known_BT` it is given no code beforehand."""
    logits = student.logits(batch["codes"], student.conditioning(batch), known_BT)
    return bits_of(logits.log_softmax(2), batch["codes"])


@torch.inference_mode()
def forward_gap(student: Student, batch: dict) -> Tensor:
    """[B] bits per code by which each of the teacher's windows surprises the student more than the teacher."""
    return forward_gaps(student, batch).mean(1)


@torch.inference_mode()
def forward_gaps(student: Student, batch: dict) -> Tensor:
    """The same for each code [B, T]: negative where a student knows what the teacher has yet to sample."""
    return student_bits(student, batch) - batch["teacher_bits"]


@torch.inference_mode()
def sampled(student: Student, batch: dict, seeds: list[int], temperature: float = 1.0) -> Tensor:
    """Codes [B, T] that the student samples with the conditioning of `batch`."""
    codes_BT = batch["codes"]
    device = codes_BT.device
    keys = gumbel_noise.noise_keys(seeds, student.config.level).to(device)
    sampler = TokenSampler(keys, torch.full((len(seeds),), temperature, device=device))
    known_BT = torch.zeros_like(codes_BT, dtype=torch.bool)
    token_sampler = StudentTokenSampler(sampler, torch.zeros_like(keys))
    return emit(student, student.conditioning(batch), codes_BT, known_BT, token_sampler)


@torch.inference_mode()
def reverse_gap(
    student: Student, teacher: Prior, batch: dict, seeds: list[int], sampling: SamplingSettings
) -> Tensor:
    """[B] bits per code by which each of the student's windows surprises the teacher more than the student."""
    own = {**batch, "codes": sampled(student, batch, seeds)}
    teacher_surprisal = bits_of(teacher_log_p(teacher, own, sampling), own["codes"])
    return (teacher_surprisal - student_bits(student, own)).mean(1)


def with_interval(per_window: np.ndarray) -> tuple[float, float]:
    """The mean, and half the width of its 95 % confidence interval (normal; windows are independent)."""
    half = float("nan")
    if len(per_window) > 1:
        half = float(Z_95 * per_window.std(ddof=1) / len(per_window) ** 0.5)
    return float(per_window.mean()), half
