"""A stretch of sound as a vector: the built-in embedding, and embedders that a user brings.

The built-in one ("mel modulation 1", 54 numbers for each window of 2 s, docs/evaluation.md) is a plain formula: no
weights, no downloads, the same everywhere. It captures spectrum and rhythm up to 8 kHz, not melody or meaning.
"""

# T samples   F frames   B mel bands   G groups of bands   M modulation bands   N windows   D features
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megajukebox.common.errors import UserError
from megajukebox.data.audio import resampled
from megajukebox.data.spectra import frame_spectra, mel_bands, window_size
from megajukebox.evaluation.inputs import EvalSong

Array = np.ndarray
WINDOW_SECONDS = 2.0  # of audio for one vector
HOP_SECONDS = 1.0  # from one vector to the next
FRAME_SECONDS = 0.032  # of audio for one spectrum
FRAME_STEP_SECONDS = 0.01  # from one spectrum to the next
MEL_BANDS = 40
LOWEST_HERTZ = 40.0
HIGHEST_HERTZ = 8000.0
SHAPE_SIZE = 16  # numbers for the mean spectrum
SPREAD_SIZE = 10  # numbers for how much each region of it varies
GROUPS = 4  # regions of the spectrum whose loudness is followed over time
MODULATION_HERTZ = (0.5, 1, 2, 4, 8, 16, 32, 50)  # edges of the bands in which loudness may swing
SIZE = SHAPE_SIZE + SPREAD_SIZE + GROUPS * (len(MODULATION_HERTZ) - 1)  # 54
FLOOR = 1e-3  # of the mean power: 30 dB below, as quiet as what coding noise covers
FRAMES_AT_ONCE = 4096  # the spectra of a long song do not fit in memory


@dataclass(frozen=True)
class Embedder:
    """A named way to turn a song into vectors [N, D], one for each window."""

    name: str
    embed: Callable[[EvalSong], Array]


def mel_modulation(song: EvalSong) -> Array:
    """[N, SIZE] of windows of 2 s, 1 s apart; a song shorter than 2 s has none."""
    loudness_FB = log_mel(song.audio, song.rate)
    size = round(WINDOW_SECONDS / FRAME_STEP_SECONDS)
    step = round(HOP_SECONDS / FRAME_STEP_SECONDS)
    starts = range(0, len(loudness_FB) - size + 1, step)
    if not starts:
        return np.zeros((0, SIZE))
    return np.stack([window_features(loudness_FB[start : start + size]) for start in starts])


def log_mel(audio_T: Array, rate: int) -> Array:
    """[F, B] natural log of the mel power, relative to the song's mean."""
    size = window_size(FRAME_SECONDS, rate)
    count = int((len(audio_T) / rate - FRAME_SECONDS) / FRAME_STEP_SECONDS) + 1
    if count < 1:
        return np.zeros((0, MEL_BANDS))
    padded = np.pad(audio_T, (0, size))
    starts = np.round(np.arange(count) * FRAME_STEP_SECONDS * rate).astype(int)
    window = np.hanning(size).astype(np.float32)
    hertz_K = np.fft.rfftfreq(size, 1 / rate)
    filters_KB = mel_bands(hertz_K, LOWEST_HERTZ, min(HIGHEST_HERTZ, rate / 2), MEL_BANDS)
    powers = []
    for some in np.array_split(starts, -(-count // FRAMES_AT_ONCE)):
        powers.append(np.abs(frame_spectra(padded, some, window)) ** 2 @ filters_KB)
    power_FB = np.concatenate(powers)
    return np.log(power_FB / max(power_FB.mean(), 1e-12) + FLOOR)


def window_features(loudness_FB: Array) -> Array:
    """[SIZE] shape of the mean spectrum (16), how much it varies (10), and how fast, in 4 regions (28)."""
    mean_B = loudness_FB.mean(axis=0)
    spread_B = np.log(loudness_FB.std(axis=0) + 0.05)
    shape = cosines(mean_B, SHAPE_SIZE)
    spread = cosines(spread_B, SPREAD_SIZE)
    parts = np.array_split(loudness_FB, GROUPS, axis=1)
    groups_GF = np.stack([part.mean(axis=1) for part in parts])
    frames = groups_GF.shape[1]
    swing_GF = (groups_GF - groups_GF.mean(axis=1, keepdims=True)) * np.hanning(frames)
    power_GK = np.abs(np.fft.rfft(swing_GF)) ** 2
    hertz_K = np.fft.rfftfreq(frames, FRAME_STEP_SECONDS)
    bands = []
    for low, high in pairwise(MODULATION_HERTZ):
        within_K = (hertz_K >= low) & (hertz_K < high)
        bands.append(power_GK[:, within_K].mean(axis=1))
    modulations_GM = np.log(np.stack(bands, axis=1) / frames + 1e-4)
    return np.concatenate([shape, spread, modulations_GM.ravel()])


def cosines(values_B: Array, count: int) -> Array:
    """The coarsest `count` ripples of values along the mel scale (a DCT): the first is their mean."""
    angle = np.pi / len(values_B) * (np.arange(len(values_B)) + 0.5)
    return np.cos(np.outer(np.arange(count), angle)) @ values_B / len(values_B)


BUILT_IN = Embedder("mel modulation 1", mel_modulation)


# ---- Embedders that a user brings


def load_embedder(path: Path, rate: int, seconds: float, trust_code: bool) -> Embedder:
    """Load an embedder from a file: .onnx, or TorchScript (.pt, .ts) if `trust_code`.

    It gets float32 [N, T] of mono audio at `rate` Hz, windows of `seconds`, and gives [N, D], or
    [N, F, D], which is averaged over F.

    Raises:
        UserError: a file of another kind, or one that is code and not trusted.
    """
    model = load_model(path, trust_code)

    def embed(song: EvalSong) -> Array:
        audio_T = resampled(song.audio[:, None], song.rate, rate)[:, 0]
        size = round(seconds * rate)
        step = max(1, round(seconds * rate / 2))
        vectors = []
        for start in range(0, len(audio_T) - size + 1, step):
            vectors.append(model(audio_T[start : start + size][None].astype(np.float32)))
        if not vectors:
            return np.zeros((0, 1))
        joined = np.concatenate(vectors)
        return joined.mean(axis=1) if joined.ndim == 3 else joined

    return Embedder(path.name, embed)


def load_model(path: Path, trust_code: bool) -> Callable[[Array], Array]:
    """A function from audio [N, T] to vectors, by the model in a file."""
    if path.suffix == ".onnx":
        try:
            import onnxruntime
        except ImportError:
            raise UserError(
                f"embedder {path} needs onnxruntime; run pip install 'megajukebox[evaluate]'"
            ) from None
        session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda audio_NT: np.asarray(session.run(None, {name: audio_NT})[0])
    if path.suffix not in (".pt", ".ts", ".torchscript"):
        raise UserError(
            f"embedder {path} is neither .onnx nor TorchScript (.pt, .ts); export it as one of them"
        )
    if not trust_code:
        raise UserError(
            f"embedder {path} is TorchScript, a program that can do whatever you can; if you trust"
            " where it comes from, give --trust-code (an .onnx file is data and needs no such trust)"
        )
    module = torch.jit.load(str(path), map_location="cpu").eval()

    def model(audio_NT: Array) -> Array:
        with torch.inference_mode():
            return module(torch.from_numpy(audio_NT)).float().numpy()

    return model
