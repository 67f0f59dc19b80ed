"""Proof that a refiner takes noise away: a VQ-VAE as Jukebox trained it, small, and a refiner of a CPU-minute behind it.

On songs that neither has met, and on real recordings where they are at hand.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from fixtures.paths import SHARED
from torch import Tensor, nn

from megajukebox.data.audio import read_mono
from megajukebox.data.demo.composition import compose
from megajukebox.data.demo.render import render
from megajukebox.evaluation.evaluators.noise import noise_metrics
from megajukebox.evaluation.evaluators.reconstruction import fidelity
from megajukebox.models.chunked_codec import decode_long, encode_long, refine_long
from megajukebox.models.losses import Bandwidth
from megajukebox.models.vqvae import VQVAE, VQVAEConfig
from megajukebox.training.refiner_settings import RefinerSettings, refiner_config
from megajukebox.training.refiner_training import RefinerTraining

RATE = 11025
SONGS, HELD_OUT = 24, 6
VQVAE_STEPS, REFINER_STEPS = 400, 450
# Measured: -2.1. This decoder starts at 10.7 dB, nearer to the songs than the 12.1 dB of the demo's.
LOG_MAGNITUDE_GATE_DB = -2.0
Array = np.ndarray

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def songs() -> list[Array]:
    """Mono songs of ten seconds."""
    waves = []
    for number in range(SONGS + HELD_OUT):
        wave = render(compose(number, 0, (10.0, 10.5)), RATE)
        waves.append(wave.reshape(len(wave), -1).mean(axis=1).astype(np.float32))
    return waves


def clips(waves: list[Array], length: int, count: int, seed: int) -> Iterator[Tensor]:
    """Batches [count, length, 1] without end."""
    rng = np.random.default_rng(seed)
    while True:
        rows = []
        for wave in (waves[n] for n in rng.integers(0, len(waves), count)):
            start = int(rng.integers(0, len(wave) - length))
            rows.append(wave[start : start + length])
        yield torch.from_numpy(np.stack(rows))[:, :, None]


def train(model: nn.Module, batches: Iterator[Tensor], steps: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.8, 0.99), weight_decay=0.0)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = (
                rate * min(1, (step + 1) / 20) * max(0.05, np.cos(step / steps * np.pi / 2))
            )
        loss, _ = model({"audio": next(batches)})
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def jukebox_vqvae(waves: list[Array]) -> VQVAE:
    """One level of hop 8 with Jukebox's loss, rule of the codebook and initialisation; its width is a demo's."""
    everything = torch.from_numpy(np.concatenate(waves))
    bandwidth = {"l2": float(everything.var()), "l1": float(everything.abs().mean())}
    shape = {"down": (3,), "stride": (2,), "multipliers": (1,), "width": 16, "depth": 3}
    codes = {"code_width": 32, "codebook_size": 256, "fresh_restarts": False}
    config = VQVAEConfig(sample_rate=RATE, **shape, **codes)
    norms = []
    for wave in waves:
        norms.append(config.loss.stft.magnitude(torch.from_numpy(wave[None, :8192])).norm())
    scale = Bandwidth(spectral=float(torch.stack(norms).mean()), **bandwidth)
    model = VQVAE(config.model_copy(update={"bandwidth": scale}))
    for layer in model.modules():  # as torch initialises them, which is what Jukebox did
        if isinstance(layer, nn.Conv1d):
            nn.Conv1d.reset_parameters(layer)
        elif isinstance(layer, nn.ConvTranspose1d):
            nn.ConvTranspose1d.reset_parameters(layer)
    return model


def figures(vqvae: VQVAE, refiner: RefinerTraining, waves: list[Array]) -> dict[str, Array]:
    """By metric, [songs, 2]: of the decoder, and refined."""
    rows: dict[str, list] = {}
    for wave in waves:
        codes = encode_long(vqvae, torch.from_numpy(wave), "top")
        both = []
        for audio in (decode_long(vqvae, codes, "top"), refine_long(vqvae, refiner, codes)):
            heard = audio.numpy()
            both.append(fidelity(wave, heard, RATE) | noise_metrics(wave, heard, RATE))
        for name in both[0]:
            rows.setdefault(name, []).append([side[name] for side in both])
    return {name: np.array(values) for name, values in rows.items()}


def recordings() -> list[Array]:
    """Ten seconds of each real recording that was given beside the project, where it is no silence."""
    waves = []
    for path in sorted((SHARED / "audio").glob("*.ogg")):
        wave = read_mono(path, RATE)[: 10 * RATE]
        if np.sqrt(np.mean(wave**2)) > 0.005:
            waves.append(wave)
    return waves


def test_a_refiner_takes_noise_away_from_a_vqvae_as_jukebox_trained_it() -> None:
    torch.manual_seed(0)
    waves = songs()
    known, held_out = waves[:SONGS], waves[SONGS:]
    vqvae = jukebox_vqvae(known)
    train(vqvae, clips(known, 8192, 4, seed=0), VQVAE_STEPS, 3e-3)
    config = refiner_config(RefinerSettings(level="top"), vqvae.config)
    refiner = RefinerTraining(config, RefinerSettings().loss, vqvae)
    train(refiner, clips(known, 16384, 4, seed=1), REFINER_STEPS, 2e-3)
    found = figures(vqvae, refiner, held_out)
    gain = {name: float(np.nanmean(rows[:, 1] - rows[:, 0])) for name, rows in found.items()}
    report = {name: np.nanmean(rows, axis=0).round(2).tolist() for name, rows in found.items()}
    shown = {name: report[name] for name in report if "/" not in name}
    print(shown)
    assert gain["valley_noise_db"] < -2.5, shown
    assert gain["log_magnitude_db"] < LOG_MAGNITUDE_GATE_DB, shown
    assert gain["spectral_convergence_db"] < 0.1, shown
    assert gain["snr_db"] > -0.5, shown
    assert gain["peakiness_db"] > 0, shown
    real = recordings()
    if not real:
        pytest.skip("songs passed; the real recordings are not at hand")
    heard = figures(vqvae, refiner, real)
    print({name: heard[name].round(2).tolist() for name in heard if "/" not in name})
    changes = heard["valley_noise_db"][:, 1] - heard["valley_noise_db"][:, 0]
    assert np.nanmean(changes) < -2, changes
