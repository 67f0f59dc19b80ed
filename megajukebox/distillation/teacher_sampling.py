"""A teacher samples the windows that its student is trained on, shard by shard.

data/stream/teacher_dataset.py describes what is stored of each window.
"""

# B windows   T codes of a window   V vocabulary   K likeliest codes
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
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
from megajukebox.sampling.levels.level_windows import to_device

ReadWindow = Callable[[int], dict[str, Any]]  # number of a window -> a song's window

# Names of settings in shards that were written up to version 0.1.0.
RENAMED_SETTINGS = {
    "lesson": "teacher_data",
    "manner": "sampling",
    "real_share": "real_fraction",
    "likeliest": "top_k",
    "per_shard": "windows_per_shard",
}


@dataclass(frozen=True)
class TeacherDataConfig:
    """What a teacher samples. The same settings give the same windows, however the work is split."""

    windows: int  # for training
    held_out: int  # windows conditioned on songs that the teacher was not trained on
    sampling: SamplingSettings
    real_fraction: float = 0.2  # of the training windows that are a song's own codes
    top_k: int = 64  # likeliest codes whose probabilities are stored
    seed: int = 0
    batch_size: int = 64  # windows that are sampled at once
    windows_per_shard: int = 256

    def shards(self) -> list[tuple[str, range]]:
        """(part, numbers of the windows) of each shard, the held-out ones first."""
        shards = []
        for part, count in ((HELD_OUT, self.held_out), (TRAIN, self.windows)):
            for first in range(0, count, self.windows_per_shard):
                last = min(first + self.windows_per_shard, count)
                shards.append((part, range(first, last)))
        return shards

    def facts(self) -> dict[str, Any]:
        """The settings that decide what the windows are, for the shards' notes."""
        settings = asdict(self)
        del settings["batch_size"]
        return settings


def shard_name(number: int) -> str:
    return f"windows-{number:06d}.tar"


def current_settings(origin: Mapping[str, Any]) -> dict[str, Any]:
    """The origin of a teacher shard, of any version, with the settings' present names."""
    current = {}
    for name, value in origin.items():
        current[RENAMED_SETTINGS.get(name, name)] = (
            current_settings(value) if isinstance(value, dict) else value
        )
    return current


def write_teacher_shard(
    teacher: Prior,
    source: CodeWindows,
    config: TeacherDataConfig,
    number: int,
    out: Path,
    origin: dict[str, Any],
) -> bool:
    """Write shard `number`, unless it is finished and of the same origin. Returns whether it wrote."""
    path = out / shard_name(number)
    finished = finished_shard(path)
    if finished and current_settings(finished["notes"]) == current_settings(origin):
        return False
    part, numbers = config.shards()[number]
    write_shard(path, shard_windows(teacher, source, config, part, numbers), notes=origin)
    return True


def shard_windows(
    teacher: Prior, source: CodeWindows, config: TeacherDataConfig, part: str, numbers: range
) -> Iterator[ShardSample]:
    """The windows of a shard, sampled in batches.

    Their conditioning is that of songs' windows in the order of a training; for held-out ones of windows
    spread evenly over the held-out songs.
    """
    order: Order | InOrder
    if part == TRAIN:
        order = Order(source.clips("train"), source.shard_of_song, config.seed)
        seed = config.seed
    else:
        order = InOrder(source.clips("held_out"), config.held_out)
        seed = None

    def read(number: int) -> dict[str, Any]:
        return read_or_replace(source, order, number, seed).fields

    for first in range(0, len(numbers), config.batch_size):
        batch = numbers[first : first + config.batch_size]
        yield from sampled_windows(teacher, read, config, part, batch)


def sampled_windows(
    teacher: Prior, read: ReadWindow, config: TeacherDataConfig, part: str, numbers: range
) -> Iterator[ShardSample]:
    """Some windows of a shard, sampled together."""
    windows = list(map(read, numbers))
    device = next(teacher.parameters()).device
    batch = to_device(tensors(stack(windows)), device)
    # Noise is keyed by the window's number and part: no two windows of a data set share it.
    first_seed = (2 * config.seed + (part == TRAIN)) * 2**32
    seeds = []
    sampled = []  # by the teacher; the others keep the song's own codes
    for number in numbers:
        seeds.append(first_seed + number)
        ratio = rng(config.seed, "taught", number).random()
        sampled.append(part == HELD_OUT or ratio >= config.real_fraction)
    by_teacher = torch.tensor(sampled, device=device)
    codes_BT = teacher_codes(teacher, batch, seeds, config.sampling)
    batch["codes"] = torch.where(by_teacher[:, None], codes_BT, batch["codes"])
    log_p_BTV = teacher_log_p(teacher, batch, config.sampling)
    likeliest = log_p_BTV.topk(min(config.top_k, teacher.config.codebook_size), dim=2)
    stored = {
        "codes": batch["codes"],
        "teacher_bits": bits_of(log_p_BTV, batch["codes"]),
        "taught": by_teacher,
        "soft_ids": likeliest.indices,
        "soft_log_p": likeliest.values,
    }
    arrays = {name: tensor.cpu().numpy() for name, tensor in stored.items()}
    frames = teacher.config.window * teacher.config.hop
    for row, number in enumerate(numbers):
        own = {name: array[row] for name, array in arrays.items()}
        yield teacher_sample(part, number, frames, windows[row] | own)


@torch.inference_mode()
def teacher_codes(
    teacher: Prior, batch: dict, seeds: list[int], sampling: SamplingSettings
) -> Tensor:
    """Codes [B, T] that the teacher samples without known codes, with the conditioning of `batch`."""
    config = teacher.config
    device = batch["codes"].device
    count = len(seeds)
    assert not config.prefix_tokens, "models/student.py refuses a prior with a prefix"
    keys = gumbel_noise.noise_keys(seeds, config.level).to(device)
    conditional = TokenSampler(keys, torch.full((count,), sampling.temperature, device=device))
    sampler: TokenSamplerProtocol = conditional
    if sampling.guidance != 1.0:
        batch = concatenate(batch, null_conditioned_batch(batch))
        songs = torch.arange(count, device=device)
        guidance = torch.full((count,), sampling.guidance, device=device)
        sampler = ClassifierFreeGuidance(conditional, songs, guidance)
    codes_BT = torch.zeros_like(batch["codes"])
    known_BT = torch.zeros_like(codes_BT, dtype=torch.bool)
    first_B = torch.zeros_like(codes_BT[:, 0])
    window = SamplingWindow(
        teacher, teacher.conditioning(batch), codes_BT, known_BT, first_B, sampler
    )
    return sample_window(PackedPrior(teacher), window)[:count]


def concatenate(one: dict, other: dict) -> dict:
    """Two batches as one."""
    joined: dict[str, Any] = {}
    for name, value in one.items():
        if isinstance(value, dict):
            joined[name] = concatenate(value, other[name])
        else:
            joined[name] = torch.cat([value, other[name]])
    return joined
