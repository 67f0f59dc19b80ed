"""Priors and VQ-VAEs of a few thousand weights, with everything the real ones have, and batches for them."""

import torch
from torch import Tensor, nn

from megajukebox.models.attention import SCHEDULES
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.models.vqvae import VQVAE, VQVAEConfig
from megajukebox.sampling.levels.autoregressive import sampler_of
from megajukebox.sampling.levels.level import Told, new_job
from megajukebox.sampling.steps import noise
from megajukebox.sampling.steps.drawing import Draw
from megajukebox.sampling.steps.window import Window

WINDOW, ROWS, LYRICS, CODES, RATIO = 16, 4, 8, 11, 4
ENCODER = {"width": 8, "depth": 3, "heads": 2, "rows": 2, "attention_ratio": 0.5, "init_scale": 15.0}
LABELS = {"artist": {"size": 5}, "genres": {"slots": 3, "size": 6}}


def depth_of(name: str) -> int:
    """The fewest layers in which `name` shows every pattern it has."""
    period = SCHEDULES[name]
    return next(d for d in range(1, len(period) + 1) if set(period[:d]) == set(period))


def prior_settings(schedule: str = "factored", **changed) -> dict:
    """A middle level that is told everything: labels, timing, codes above, and lyrics where the schedule reads them."""
    shape = {"width": 8, "heads": 2, "rows": ROWS, "attention_ratio": 1.0, "init_scale": 15.0, "schedule": schedule}
    settings = {
        "level": "middle", "sample_rate": 1000, "hop": 4, "codes": CODES, "window": WINDOW, "labels": LABELS,
        "transformer": {**shape, "depth": depth_of(schedule)},
        "timing": {"bins": 16, "min_seconds": 0, "max_seconds": 2},
        "upper": {"width": 6, "depth": 2},
    }  # fmt: skip
    if "lyrics" in SCHEDULES[schedule]:
        settings["lyrics"] = {"tokens": LYRICS, "size": 7, "encoder": ENCODER}
    if "prefix" in SCHEDULES[schedule]:
        settings["lyrics"] = {"tokens": LYRICS, "size": 7, "mode": "prefix"}
    return settings | changed


def little_prior(schedule: str = "factored", seed: int = 0, **changed) -> Prior:
    """A prior whose logits vary: nothing in it is zero, as if it were trained."""
    torch.manual_seed(seed)
    return awake(Prior(PriorConfig(**prior_settings(schedule, **changed))))


def awake(model: nn.Module) -> nn.Module:
    """`model` with random weights where it starts with zeros: a layer that is silent would prove nothing."""
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.any():
                weight.normal_(std=0.1)
    return model.eval()


def prior_batch(config: PriorConfig, songs: int = 2, seed: int = 1) -> dict:
    """A batch of `Prior.forward`, made up."""
    draw = torch.Generator().manual_seed(seed)

    def ids(high: int, *shape: int, low: int = 0) -> Tensor:
        return torch.randint(low, high, (songs, *shape), generator=draw)

    span = config.window * config.hop
    starts = ids(config.window, 1) * config.hop
    timing = torch.cat([starts + 2 * span + ids(100, 1), starts, torch.full_like(starts, span)], dim=1)
    conditions = {n: ids(label.size, label.slots, low=-(label.slots > 1)) for n, label in config.labels.items()}
    batch = {"codes": ids(config.codes, config.window), "timing": timing, "conditions": conditions}
    if config.upper:
        batch["upper_codes"] = ids(config.codes, config.window // config.upper.ratio)
    if config.lyrics:
        batch["lyrics"] = ids(config.lyrics.size, config.lyrics.tokens)
    return batch


def song_of(batch: dict, songs: int | Tensor) -> dict:
    """One song of `batch`, or several, as a batch of its own."""
    which = slice(songs, songs + 1) if isinstance(songs, int) else songs
    return {k: song_of(v, songs) if isinstance(v, dict) else v[which] for k, v in batch.items()}


def plain_draw(seeds: list[int], level: str = "middle", temperature: float = 1.0, **filters) -> Draw:
    return Draw(noise.keys(seeds, level), torch.full((len(seeds),), temperature), **filters)


def vqvae_config(**changed) -> VQVAEConfig:
    """Hops 8, 32 and 128 as in the real one, 1000 samples a second."""
    stfts = [{"fft": 64, "hop": 16, "window": 48}, {"fft": 32, "hop": 8, "window": 20}]
    loss = {"stfts": stfts, "stft": stfts[0], "linf_samples": 64}
    small = {"sample_rate": 1000, "width": 4, "depth": 2, "code_width": 4, "codes": 16, "loss": loss}
    return VQVAEConfig(**small | changed)


def little_vqvae(seed: int = 0, **changed) -> VQVAE:
    """A VQ-VAE in evaluation, its codes made up from what its encoder says of noise (so that all are in use)."""
    torch.manual_seed(seed)
    model = VQVAE(vqvae_config(**changed))
    with torch.no_grad():
        for level in model.levels.values():
            level.codebook.start(level.encoder(torch.randn(1, 1, 128 * 64)).transpose(1, 2).flatten(0, 1))
    return model.eval()


def window_task(prior: Prior, batch: dict, draw, known: int, until: int, first: int = 0) -> Window:
    """The window of `batch`: the first `known` positions stay, and those from `until` on."""
    tokens = prior.tokens(batch).clone()
    stay = torch.ones_like(tokens, dtype=torch.bool)
    stay[:, known:until] = False
    return Window(prior, prior.conditioning(batch), tokens, stay, torch.full((len(tokens),), first), draw)


def sample_level(
    prior: Prior, told: list[Told], upper: Tensor | None, total: int, samples: int, draw: Draw, hop: float,
    known: Tensor | None = None, guidance: list[float] | None = None, way: str = "sequential", **settings,
) -> Tensor:  # fmt: skip
    """Codes [B, T] of a whole level."""
    job = new_job(told, total, samples, draw, hop, upper, guidance, known)
    sampler_of(prior, way, **settings).sample(job, lambda count: None)
    assert job.known_BT.all()
    return job.codes_BT
