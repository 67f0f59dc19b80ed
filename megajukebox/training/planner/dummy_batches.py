"""Made-up batches of the right shapes, for plans and benchmarks, on torch's default device."""

import torch

from megajukebox.common.levels import COMPOSER_FOLDER
from megajukebox.models.conditioners import ALIGNED
from megajukebox.models.prior import PriorConfig


def clips(size: int, samples: int, channels: int = 1) -> dict:
    """Noise as a VQ-VAE is given audio: [size, samples, channels]."""
    return {"audio": torch.randn(size, samples, channels) * 0.1}


def windows(config: PriorConfig, size: int) -> dict:
    """Random codes, with every condition of a prior of this configuration."""
    codes = torch.randint(config.codebook_size, (size, config.window))
    conditions = {}
    for name, table in config.conditions.items():
        conditions[name] = torch.randint(table.table_size, (size, table.max_values))
    batch: dict = {"codes": codes, "conditions": conditions}
    batch["timing"] = torch.tensor([[180.0, 30.0, 20.0]]).repeat(size, 1) * config.sample_rate
    if config.lyrics:
        batch["lyrics"] = torch.randint(config.lyrics.size, (size, config.lyrics.tokens))
    for name, settings in config.aligned.items():
        batch[name] = ALIGNED[name].example(settings, size, config.window)
    if config.upsampler_conditioner:
        batch["upper_codes"] = torch.randint(
            config.upper_codebook_size, (size, config.window // config.upsampler_conditioner.ratio)
        )
    if config.level == COMPOSER_FOLDER:
        batch["predicted"] = torch.ones(size, config.window, dtype=torch.bool)
    return batch
