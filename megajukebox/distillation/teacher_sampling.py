"""A teacher samples the windows that its student is trained on, shard by shard (taught.py says what is stored)."""

# B windows   T codes of a window   R rows   K likeliest codes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megajukebox.data.shards.shard_set import ShardSample, finished_shard, write_shard
from megajukebox.data.stream.batches import read_or_replace, stack, tensors
from megajukebox.data.stream.code_dataset import CodeWindows
from megajukebox.data.stream.sample_order import InOrder, Order, rng
from megajukebox.data.stream.teacher_dataset import HELD_OUT, TRAIN, teacher_sample
from megajukebox.distillation.divergence import (
    SamplingSettings,
    bits_of,
    null_conditioned_batch,
    teacher_log_p,
)
from megajukebox.models.prior import Prior
from megajukebox.sampling.decoding import gumbel_noise
from megajukebox.sampling.decoding.decoder import PackedPrior
from megajukebox.sampling.decoding.token_sampling import (
    ClassifierFreeGuidance,
    TokenSampler,
    TokenSamplerProtocol,
)
from megajukebox.sampling.decoding.window_sampler import SamplingWindow, sample_window

Told = Callable[
    [int], dict[str, Any]
]  # number of a window -> the real window whose labels, timing ... it is told


@dataclass(frozen=True)
class TeacherDataConfig:
    """What a teacher is to sample. The same lesson gives the same windows, however the work is split."""

    windows: int  # for training
    held_out: int  # windows told what songs are told that the teacher was not trained on
    manner: SamplingSettings
    real_share: float = 0.2  # of the training windows are a song's own codes
    likeliest: int = 64
    seed: int = 0
    batch: int = 64
    per_shard: int = 256

    def shards(self) -> list[tuple[str, range]]:
        """(part, numbers of the windows) of each shard, the held-out ones first."""
        parts = ((HELD_OUT, range(self.held_out)), (TRAIN, range(self.windows)))
        return [
            (part, all_[i : i + self.per_shard])
            for part, all_ in parts
            for i in all_[:: self.per_shard]
        ]


def shard_name(number: int) -> str:
    return f"windows-{number:06d}.tar"


def write_lesson_shard(
    teacher: Prior,
    source: CodeWindows,
    lesson: TeacherDataConfig,
    number: int,
    out: Path,
    origin: dict[str, Any],
) -> bool:
    """Write shard `number` of the lesson, unless it is finished and of the same origin. Returns whether it wrote."""
    done = finished_shard(out / shard_name(number))
    if done and done["notes"] == origin:
        return False
    part, numbers = lesson.shards()[number]
    told = told_by(source, lesson, part)
    cuts = (numbers[first : first + lesson.batch] for first in range(0, len(numbers), lesson.batch))
    samples = (
        sample for cut in cuts for sample in sampled_windows(teacher, told, lesson, part, cut)
    )
    write_shard(out / shard_name(number), samples, notes=origin)
    return True


def told_by(source: CodeWindows, lesson: TeacherDataConfig, part: str) -> Told:
    """Training windows come in the order of a training; held-out ones are spread evenly."""
    if part == HELD_OUT:
        even = InOrder(source.clips("held_out"), lesson.held_out)
        return lambda number: read_or_replace(source, even, number, None).fields
    order = Order(source.clips("train"), source.shard_of_song, lesson.seed)
    return lambda number: read_or_replace(source, order, number, lesson.seed).fields


def sampled_windows(
    teacher: Prior, told: Told, lesson: TeacherDataConfig, part: str, numbers: range
) -> Iterator[ShardSample]:
    """Some windows of a lesson, sampled together."""
    windows = [told(number) for number in numbers]
    device, config = next(teacher.parameters()).device, teacher.config
    batch = to_device(tensors(stack(windows)), device)
    taught = torch.tensor([is_taught(lesson, part, number) for number in numbers], device=device)
    # Noise is keyed by the window's number and part: no two windows of a lesson share it.
    seeds = [(2 * lesson.seed + (part == TRAIN)) * 2**32 + number for number in numbers]
    batch["codes"] = torch.where(
        taught[:, None], teachers_codes(teacher, batch, seeds, lesson.manner), batch["codes"]
    )
    log_p = teacher_log_p(teacher, batch, lesson.manner)
    likeliest = log_p.topk(min(lesson.likeliest, config.codebook_size), dim=2)
    said = {
        "codes": batch["codes"], "teacher_bits": bits_of(log_p, batch["codes"]), "taught": taught,
        "soft_ids": likeliest.indices, "soft_log_p": likeliest.values,
    }  # fmt: skip
    arrays = {name: x.cpu().numpy() for name, x in said.items()}
    for row, (number, window) in enumerate(zip(numbers, windows)):
        mine = window | {name: x[row] for name, x in arrays.items()}
        yield teacher_sample(part, number, config.window * config.hop, mine)


def is_taught(lesson: TeacherDataConfig, part: str, number: int) -> bool:
    return part == HELD_OUT or rng(lesson.seed, "taught", number).random() >= lesson.real_share


@torch.inference_mode()
def teachers_codes(
    teacher: Prior, batch: dict, seeds: list[int], manner: SamplingSettings
) -> Tensor:
    """Codes [B, T] that the teacher samples from nothing, told what `batch` is told."""
    config, device, count = teacher.config, batch["codes"].device, len(seeds)
    assert not config.prefix_tokens, "models/student.py refuses a prior with a prefix"
    keys = gumbel_noise.noise_keys(seeds, config.level).to(device)
    alone = TokenSampler(keys, torch.full((count,), manner.temperature, device=device))
    draw: TokenSamplerProtocol = alone
    if manner.guidance != 1.0:
        batch = joined(batch, null_conditioned_batch(batch))
        songs = torch.arange(count, device=device)
        draw = ClassifierFreeGuidance(
            alone, songs, torch.full((count,), manner.guidance, device=device)
        )
    nothing, first = (
        torch.zeros_like(batch["codes"], dtype=torch.bool),
        torch.zeros_like(batch["codes"][:, 0]),
    )
    window = SamplingWindow(
        teacher, teacher.conditioning(batch), torch.zeros_like(batch["codes"]), nothing, first, draw
    )
    return sample_window(PackedPrior(teacher), window)[:count]


def joined(one: dict, other: dict) -> dict:
    """Two batches as one."""
    return {
        n: joined(x, other[n]) if isinstance(x, dict) else torch.cat([x, other[n]])
        for n, x in one.items()
    }


def to_device(batch: dict, device: torch.device) -> dict:
    return {
        n: to_device(x, device) if isinstance(x, dict) else x.to(device) for n, x in batch.items()
    }
