"""What a stage trains, without anything of how: enough to build it anywhere, and what one pass of it needs."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn

from megajukebox.common.errors import UserError
from megajukebox.models.pipeline_layers import layers
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.models.vqvae import VQVAE, VQVAEConfig
from megajukebox.training.config import Preset, level_of
from megajukebox.training.planner.activation_trace import TracedPass, TraceSetting, training_pass
from megajukebox.training.planner.dummy_batches import clips, windows
from megajukebox.training.planner.memory import Weights


class Workload(NamedTuple):
    """What is trained, without anything of how."""

    kind: str  # vqvae or prior
    config: str  # the model's, as JSON
    clip: int  # audio samples, vqvae only
    units: float  # of one sample: codes, or seconds of audio
    unit: str

    @property
    def prior(self) -> PriorConfig:
        return PriorConfig.model_validate_json(self.config)

    @property
    def config_model(self) -> VQVAEConfig | PriorConfig:
        return VQVAEConfig.model_validate_json(self.config) if self.kind == "vqvae" else self.prior

    def build(self) -> nn.Module:
        return (
            VQVAE(VQVAEConfig.model_validate_json(self.config))
            if self.kind == "vqvae"
            else Prior(self.prior)
        )

    def batch(self, size: int) -> dict:
        return clips(size, self.clip) if self.kind == "vqvae" else windows(self.prior, size)

    @property
    def head(self) -> int:
        """Size of an attention head; 8, which any kernel serves, where there is none."""
        return (
            8
            if self.kind == "vqvae"
            else self.prior.transformer.attention_width // self.prior.transformer.heads
        )


def workload_of(preset: Preset, stage: str) -> Workload:
    """Stage `stage` of `preset`, every vocabulary as large as its table."""
    settings = preset.stage(stage)
    if stage == "vqvae":
        clip = settings.clip or 0
        seconds = clip / preset.audio.sample_rate
        return Workload("vqvae", preset.vqvae.model_dump_json(), clip, seconds, "seconds of audio")
    config = preset.prior_config(level_of(stage), preset.lyrics_vocabulary)
    return Workload("prior", config.model_dump_json(), 0, config.window, "codes")


@lru_cache(64)
def _seen(of: Workload, size: int, how: TraceSetting) -> TracedPass:
    return training_pass(of.build, of.batch, size, how)


def footprint(of: Workload, size: int, how: TraceSetting) -> TracedPass:
    """Of `size` samples: seen at 1 and 2, and continued from there, as all but the gradients grows with the samples."""
    one, two = _seen(of, 1, how), _seen(of, 2, how)
    return TracedPass(*(round(a + (b - a) * (size - 1)) for a, b in zip(one, two)))


@lru_cache(16)
def weights_of(of: Workload, stages: int, threshold: int) -> Weights:
    """Of the fullest of `stages` pipeline stages; `threshold` says which tensors are small. ValueError for too many."""
    with torch.device("meta"):
        parts = [make() for make in layers(of.prior)] if stages > 1 else [of.build()]
    if stages > len(parts) or (stages > 1 and of.kind == "vqvae"):
        raise UserError(
            f"pipeline.stages {stages} is more than the {len(parts)} layers there are to deal out"
        )
    sizes = [[p.numel() for p in part.parameters()] for part in parts]
    total = fullest([sum(s) for s in sizes], stages)
    small = sum(n for s in sizes for n in s if n <= threshold)
    return Weights(total, max(n for s in sizes for n in s), small // stages)


def fullest(sizes: list[int], parts: int) -> int:
    """The largest sum of a part if `sizes` are cut into `parts` runs, as evenly as it goes."""
    low, high = max(sizes), sum(sizes)
    while low < high:
        middle = (low + high) // 2
        needed, room = 1, middle
        for size in sizes:
            needed, room = (needed, room - size) if size <= room else (needed + 1, middle - size)
        low, high = (low, middle) if needed <= parts else (middle + 1, high)
    return low
