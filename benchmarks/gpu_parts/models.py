"""The released sizes with random weights, or the tests' smallest, and windows of random codes for them."""

import gc
from dataclasses import dataclass

import torch

from megajukebox.common.device import accelerator
from megajukebox.models.prior import Conditioning, Prior, PriorConfig
from megajukebox.models.vqvae import VQVAE
from megajukebox.sampling.decoding import gumbel_noise
from megajukebox.sampling.decoding.token_sampling import TokenSampler
from megajukebox.sampling.decoding.window_sampler import SamplingWindow
from megajukebox.training.config import Preset, load_preset
from megajukebox.training.planner.dummy_batches import windows

RELEASED = "jukebox_5b_lyrics"
SMALLEST = "tests/fixtures/files/mini.yaml"  # seen from the repository, where parts run
TEMPERATURE = 0.99


def preset(small: bool) -> Preset:
    return load_preset(SMALLEST if small else RELEASED)


def prior_config(level: str, small: bool) -> PriorConfig:
    chosen = preset(small)
    return chosen.prior_config(level, chosen.lyrics_vocabulary)


def random_prior(config: PriorConfig, device: torch.device, dtype: torch.dtype) -> Prior:
    """Made on the device: 5 billion numbers take a CPU a minute."""
    torch.manual_seed(0)
    with torch.device(device):
        prior = Prior(config)
    return prior.to(dtype).eval().requires_grad_(False)


def random_vqvae(small: bool, device: torch.device) -> VQVAE:
    """Its codebooks are what its encoders say of noise, so that all codes are in use."""
    config = preset(small).vqvae
    torch.manual_seed(0)
    with torch.device(device):
        model = VQVAE(config).eval()
        length = config.codebook_size * max(config.hops.values())
        audio = torch.randn(1, length, 1) * 0.1
        with torch.no_grad():
            for level in model.levels.values():
                vectors = level.encoder(audio.transpose(1, 2)).transpose(1, 2).flatten(0, 1)
                level.codebook.start(vectors[: config.codebook_size])
    return model.requires_grad_(False)


def release() -> None:
    """Give the memory of what is gone back to the device, before the next model is made."""
    gc.collect()
    if accelerator() == "cuda":
        torch.cuda.empty_cache()


@dataclass
class WindowFactory:
    """Windows of `songs` songs that share conditioning and known codes, as variations of one request do."""

    prior: Prior
    songs: int

    def __post_init__(self) -> None:
        config = self.prior.config
        self.device = self.prior.head.weight.device
        with torch.device(self.device), torch.inference_mode():
            torch.manual_seed(1)
            self.batch = windows(config, 1)
            alone = self.prior.conditioning(self.batch)
            self.tokens = self.prior.tokens(self.batch).repeat(self.songs, 1)
            parts = []
            for part in alone:
                parts.append(None if part is None else part.repeat(self.songs, 1, 1))
            self.conditioning = Conditioning(*parts)

    def token_sampler(self) -> TokenSampler:
        keys = gumbel_noise.noise_keys(list(range(self.songs)), self.prior.config.level)
        return TokenSampler(
            keys.to(self.device), torch.full((self.songs,), TEMPERATURE, device=self.device)
        )

    def window(
        self, known: int, new: int, token_sampler: TokenSampler | None = None
    ) -> SamplingWindow:
        """A window of which `known` codes are known, and `new` after them are to be sampled."""
        with torch.device(self.device):
            stay = torch.ones_like(self.tokens, dtype=torch.bool)
            stay[:, known : known + new] = False
            return SamplingWindow(
                self.prior,
                self.conditioning,
                self.tokens.clone(),
                stay,
                torch.zeros(self.songs, dtype=torch.long),
                token_sampler or self.token_sampler(),
                torch.zeros(self.songs, dtype=torch.long) if self.songs > 1 else None,
            )


def bytes_per_code(prior: Prior, songs: int) -> float:
    """That a step of one position reads: the weights of layers and head once, and each song's keys and values."""
    shape = prior.config.transformer
    row = prior.config.length // shape.blocks
    keys = {
        "row": row / 2,
        "previous_row": row,
        "column": shape.blocks / 2,
        "dense": prior.config.length / 2,
        "prefix": prior.config.attended_prefix,
        "lyrics": prior.config.lyrics.tokens if prior.config.lyrics else 0,
    }
    weights = prior.head.weight.numel()
    for block in prior.blocks:
        weights += sum(parameter.numel() for parameter in block.parameters())
        if block.attention.pattern == "lyrics":  # keys and values of lyrics are made once
            weights -= sum(x.numel() for x in block.attention.key_value.parameters())
    cached = sum(keys[pattern] for pattern in shape.patterns) * 2 * shape.attention_width
    return (weights + songs * cached) * prior.head.weight.element_size()
