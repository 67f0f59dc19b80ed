"""What a stretch of sound is like, as a vector: the built-in embedding, and embedders that a user brings.

The built-in one ("mel modulation 1", 54 numbers for each window of 2 s, docs/evaluation.md) is a plain formula: no weights,
no downloads, the same everywhere. It hears spectrum and rhythm up to 8 kHz, not melody or meaning.
"""

# T samples   F frames   B mel bands   G groups of bands   M modulation bands   N windows   D features
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megajukebox.data.audio import resampled
from megajukebox.data.spectra import frame_spectra, mel_bands, window_size
from megajukebox.evaluation.inputs import EvalSong

Array = np.ndarray
WINDOW, HOP = 2.0, 1.0  # seconds
FRAME, STEP = 0.032, 0.01  # seconds of a spectrum, and from one to the next
BANDS, LOWEST, HIGHEST = 40, 40.0, 8000.0  # mel, Hz
SHAPE, SPREAD = 16, 10  # numbers for the mean spectrum, and for how much each region varies
GROUPS = 4
FRAMES_AT_ONCE = 4096  # whose spectra are held in memory
MODULATIONS = (0.5, 1, 2, 4, 8, 16, 32, 50)  # Hz, edges of the bands in which loudness may swing
FLOOR = 1e-3  # of the mean power: 30 dB below, as quiet as what coding noise covers


@dataclass(frozen=True)
class Embedder:
    """A named way to turn a song into vectors [N, D], one a window."""

    name: str
    embed: Callable[[EvalSong], Array]


def built_in() -> Embedder:
    return Embedder("mel modulation 1", mel_modulation)


def mel_modulation(song: EvalSong) -> Array:
    """[N, 54] of windows of 2 s, 1 s apart; a song shorter than 2 s has none."""
    loudness_FB = log_mel(song.audio, song.rate)
    size, step = round(WINDOW / STEP), round(HOP / STEP)
    starts = range(0, len(loudness_FB) - size + 1, step)
    return (
        np.stack([features(loudness_FB[s : s + size]) for s in starts])
        if len(starts)
        else np.zeros((0, 54))
    )


def log_mel(audio_T: Array, rate: int) -> Array:
    """[F, B] natural log of the mel power, against the song's mean."""
    size = window_size(FRAME, rate)
    count = int((len(audio_T) / rate - FRAME) / STEP) + 1
    if count < 1:
        return np.zeros((0, BANDS))
    padded = np.pad(audio_T, (0, size))
    starts = np.round(np.arange(count) * STEP * rate).astype(int)
    window_N = np.hanning(size).astype(np.float32)
    bands_KB = mel_bands(np.fft.rfftfreq(size, 1 / rate), LOWEST, min(HIGHEST, rate / 2), BANDS)
    # a long song's spectra do not fit in memory at once
    parts = np.array_split(starts, -(-count // FRAMES_AT_ONCE))
    power_FB = np.concatenate(
        [np.abs(frame_spectra(padded, part, window_N)) ** 2 @ bands_KB for part in parts]
    )
    return np.log(power_FB / max(power_FB.mean(), 1e-12) + FLOOR)


def features(loudness_FB: Array) -> Array:
    """[54] shape of the mean spectrum (16), how much it varies (10), and how fast, in 4 regions (28)."""
    mean_B, spread_B = loudness_FB.mean(axis=0), np.log(loudness_FB.std(axis=0) + 0.05)
    return np.concatenate(
        [cosines(mean_B, SHAPE), cosines(spread_B, SPREAD), modulations(loudness_FB).ravel()]
    )


def cosines(values_B: Array, count: int) -> Array:
    """The coarsest `count` ripples of values along the mel scale (a DCT): the first is their mean."""
    place = np.pi / len(values_B) * (np.arange(len(values_B)) + 0.5)
    return np.cos(np.outer(np.arange(count), place)) @ values_B / len(values_B)


def modulations(loudness_FB: Array) -> Array:
    """[G, M] log of how much of a region's loudness swings at each rate."""
    groups_GF = np.stack(
        [part.mean(axis=1) for part in np.array_split(loudness_FB, GROUPS, axis=1)]
    )
    count = groups_GF.shape[1]
    swing_GK = (
        np.abs(np.fft.rfft((groups_GF - groups_GF.mean(axis=1, keepdims=True)) * np.hanning(count)))
        ** 2
    )
    hertz_K = np.fft.rfftfreq(count, STEP)
    within = [(hertz_K >= low) & (hertz_K < high) for low, high in pairwise(MODULATIONS)]
    power_GM = np.stack([swing_GK[:, some].mean(axis=1) for some in within], axis=1) / count
    return np.log(power_GM + 1e-4)


# ---- Embedders that a user brings


def load_embedder(path: Path, rate: int, seconds: float, trust_code: bool) -> Embedder:
    """An embedder in a file: .onnx, or TorchScript (.pt, .ts) if `trust_code`.

    It gets float32 [N, T] of mono audio at `rate` Hz, windows of `seconds`, and gives [N, D], or [N, F, D], which is
    averaged over F. ValueError for a file of another kind, or that is code and not trusted.
    """
    run = runner(path, trust_code)

    def embed(song: EvalSong) -> Array:
        audio_T = resampled(song.audio[:, None], song.rate, rate)[:, 0]
        size, step = round(seconds * rate), max(1, round(seconds * rate / 2))
        starts = range(0, len(audio_T) - size + 1, step)
        found = [run(audio_T[s : s + size][None].astype(np.float32)) for s in starts]
        if not found:
            return np.zeros((0, 1))
        vectors = np.concatenate(found)
        return vectors.mean(axis=1) if vectors.ndim == 3 else vectors

    return Embedder(path.name, embed)


def runner(path: Path, trust_code: bool) -> Callable[[Array], Array]:
    if path.suffix == ".onnx":
        return onnx_runner(path)
    if path.suffix not in (".pt", ".ts", ".torchscript"):
        raise ValueError(
            f"embedder {path} is neither .onnx nor TorchScript (.pt, .ts); export it as one of them"
        )
    if not trust_code:
        raise ValueError(
            f"embedder {path} is TorchScript, a program that can do whatever you can; if you trust where it comes from,"
            " give --trust-code (an .onnx file is data and needs no such trust)"
        )
    module = torch.jit.load(str(path), map_location="cpu").eval()

    def run(audio_NT: Array) -> Array:
        with torch.inference_mode():
            return module(torch.from_numpy(audio_NT)).float().numpy()

    return run


def onnx_runner(path: Path) -> Callable[[Array], Array]:
    try:
        import onnxruntime
    except ImportError:
        raise ValueError(
            f"embedder {path} needs onnxruntime; pip install 'megajukebox[evaluate]'"
        ) from None
    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda audio_NT: np.asarray(session.run(None, {name: audio_NT})[0])
