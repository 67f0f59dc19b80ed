"""Twenty steps of training that a refactor must not move. After a deliberate change: `python tests/training/test_golden.py`."""

import json
from functools import partial

import numpy as np
import torch
from fixtures.paths import FILES
from torch import nn

from megajukebox.models.conditioners import LabelConfig, LyricsConfig
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.models.vqvae import VQVAE
from megajukebox.training.config import load_preset

GOLDEN = FILES / "losses_cpu.json"
PRESET = str(FILES / "mini.yaml")
STEPS = 20


def vqvae() -> tuple[nn.Module, list[dict]]:
    """Chords of three sines, four clips a step."""
    model, rng = VQVAE(load_preset(PRESET).vqvae), np.random.default_rng(0)
    t = np.arange(1024) / 8000
    chords = rng.uniform(100, 2000, (STEPS, 4, 3, 1))
    audio = 0.2 * np.sin(2 * np.pi * chords * t).sum(2)[..., None]
    return model, [{"audio": torch.tensor(x, dtype=torch.float32)} for x in audio]


def prior(level: str) -> tuple[nn.Module, list[dict]]:
    """Codes that walk up and down, four windows a step."""
    preset, rng = load_preset(PRESET), np.random.default_rng(1)
    told = preset.prior(level)
    labels = {
        name: LabelConfig(max_values=preset.conditions[name].max_values, table_size=8)
        for name in told.conditions
    }
    lyrics = told.lyrics and LyricsConfig(**told.lyrics.model_dump(exclude={"dropout"}), size=50)
    shape = told.model_dump(exclude={"conditions", "lyrics", "condition_tables"})
    hop = preset.vqvae.hops[level]
    config = PriorConfig(
        level=level,
        sample_rate=8000,
        hop=hop,
        codebook_size=32,
        conditions=labels,
        lyrics=lyrics,
        **shape,
    )
    return Prior(config), [window(config, rng) for _ in range(STEPS)]


def window(config: PriorConfig, rng: np.random.Generator) -> dict:
    codes = torch.from_numpy(rng.integers(-1, 2, (4, config.window)).cumsum(1) % 32)
    batch = {"codes": codes, "timing": torch.tensor([[80000, 8000, 16384]] * 4)}
    batch["conditions"] = {
        name: torch.from_numpy(rng.integers(-1 if c.max_values > 1 else 0, 8, (4, c.max_values)))
        for name, c in config.conditions.items()
    }
    if config.upsampler_conditioner:
        batch["upper_codes"] = codes[:, :: config.upsampler_conditioner.ratio]
    if config.lyrics:
        batch["lyrics"] = torch.from_numpy(rng.integers(0, 50, (4, config.lyrics.tokens)))
    return batch


def losses(model: nn.Module, batches: list[dict]) -> list[float]:
    optimizer, found = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for step, batch in enumerate(batches):
        torch.manual_seed(step)
        loss, _ = model.train()(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def train_all() -> dict[str, list[float]]:
    torch.set_num_threads(1)
    models, found = (
        {"vqvae": vqvae, **{level: partial(prior, level) for level in ("top", "middle", "bottom")}},
        {},
    )
    for name, make in models.items():
        torch.manual_seed(0)
        found[name] = losses(*make())
    return found


def test_twenty_steps_of_every_model_give_the_losses_on_file():
    for name, found in train_all().items():
        np.testing.assert_allclose(
            found, json.loads(GOLDEN.read_text())[name], rtol=1e-5, err_msg=name
        )


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(train_all(), indent=1) + "\n")
