"""What each level of a VQ-VAE keeps of a song: encoded and decoded again."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from megajukebox.data.weights import load_into, read_facts
from megajukebox.models.long_audio import decode_long, encode_long
from megajukebox.models.vqvae import VQVAE, VQVAEConfig


def reconstructor(run: Path, sample_rate: int) -> Callable[[np.ndarray, int], dict[str, np.ndarray]]:
    """A function from mono audio [T] and its rate (Hz) to the same audio [T] by level, by the VQ-VAE in `run`.

    ValueError if `run` holds no VQ-VAE, or one for another sample rate.
    """
    facts = read_facts(run)
    if facts["kind"] != "vqvae":
        raise ValueError(f"{run} holds a {facts['kind']}, not a VQ-VAE")
    vqvae = VQVAE(VQVAEConfig(**facts["config"]))
    if vqvae.config.sample_rate != sample_rate:
        raise ValueError(f"{run} is for {vqvae.config.sample_rate} Hz, the songs have {sample_rate} Hz")
    load_into(vqvae, run)
    vqvae.eval()

    def reconstruct(wave_T: np.ndarray, rate: int) -> dict[str, np.ndarray]:
        assert rate == sample_rate, f"{rate} Hz in a set of {sample_rate} Hz"
        audio_T = torch.from_numpy(wave_T)
        levels = {level: decode_long(vqvae, encode_long(vqvae, audio_T, level), level) for level in vqvae.config.levels}
        return {level: padded(sound.clamp(-1, 1).numpy(), len(wave_T)) for level, sound in levels.items()}

    return reconstruct


def padded(wave_T: np.ndarray, length: int) -> np.ndarray:
    """`wave_T` with silence to `length`: a rest shorter than one top code is not encoded."""
    return np.pad(wave_T, (0, length - len(wave_T)))
