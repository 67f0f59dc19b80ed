"""What a stage trains, without anything of how: enough to build it anywhere, and what one pass of it needs."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn

from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.models.vqvae import VQVAE, VQVAEConfig
from megajukebox.training.config import Preset, level_of
from megajukebox.training.examples import clips, windows
from megajukebox.training.footprint import Pass, Setting, training_pass
from megajukebox.training.memory import Weights


class Subject(NamedTuple):
    """What is trained, without anything of how."""

    kind: str  # vqvae or prior
    config: str  # the model's, as JSON
    clip: int  # audio samples, vqvae only
    units: float  # of one sample: codes, or seconds of audio
    unit: str

    def build(self) -> nn.Module:
        config = self.config
        return (
            VQVAE(VQVAEConfig.model_validate_json(config))
            if self.kind == "vqvae"
            else Prior(PriorConfig.model_validate_json(config))
        )

    def batch(self, size: int) -> dict:
        if self.kind == "vqvae":
            return clips(size, self.clip)
        return windows(PriorConfig.model_validate_json(self.config), size)

    @property
    def head(self) -> int:
        """Size of the largest attention head; 8 where there is none (any size is served)."""
        shape = None if self.kind == "vqvae" else PriorConfig.model_validate_json(self.config).transformer
        return shape.attention_width // shape.heads if shape else 8


def subject(preset: Preset, stage: str) -> Subject:
    """Stage `stage` of `preset`, every vocabulary as large as its table."""
    settings = preset.stage(stage)
    if stage == "vqvae":
        clip = settings.clip or 0
        seconds = clip / preset.audio.sample_rate
        return Subject("vqvae", preset.vqvae.model_dump_json(), clip, seconds, "seconds of audio")
    config = preset.prior_config(level_of(stage), preset.lyrics_vocabulary)
    return Subject("prior", config.model_dump_json(), 0, config.window, "codes")


@lru_cache(64)
def _seen(of: Subject, size: int, how: Setting) -> Pass:
    return training_pass(of.build, of.batch, size, how)


def footprint(of: Subject, size: int, how: Setting) -> Pass:
    """Of `size` samples: seen at 1 and 2, and continued from there, as all but the gradients grows with the samples."""
    one, two = _seen(of, 1, how), _seen(of, 2, how)
    return Pass(*(round(a + (b - a) * (size - 1)) for a, b in zip(one, two)))


@lru_cache(16)
def weights_of(of: Subject, stages: int, threshold: int) -> Weights:
    """Of the fullest of `stages` pipeline stages (blocks dealt out evenly, embeddings and head with the outer ones)."""
    with torch.device("meta"):
        model = of.build()
    sizes = [p.numel() for p in model.parameters()]
    blocks = getattr(model, "blocks", None)
    if stages > 1 and (not isinstance(blocks, nn.ModuleList) or len(blocks) < stages):
        depth = len(blocks) if isinstance(blocks, nn.ModuleList) else 0
        raise ValueError(f"pipeline.stages {stages} is more than the {depth} layers there are to deal out")
    if stages > 1 and isinstance(blocks, nn.ModuleList):
        inside = sum(p.numel() for p in blocks.parameters())
        total = max(-(-inside // stages) + (sum(sizes) - inside), -(-sum(sizes) // stages))
        return Weights(total, max(sizes), sum(s for s in sizes if s <= threshold) // stages)
    return Weights(sum(sizes), max(sizes), sum(s for s in sizes if s <= threshold))
