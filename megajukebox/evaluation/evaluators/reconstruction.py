"""How near a reconstruction is to its original: in the wave, in its spectra, and in each band of frequencies."""

# T samples   F frames   K frequency bins   B mel bands
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch

from megajukebox.data.spectra import mel_bands, window_size
from megajukebox.models.losses import STFT, spectral_convergence

Array = np.ndarray
EDGES = (0, 125, 250, 500, 1000, 2000, 4000, 8000, 16000)  # Hz, octaves
RESOLUTIONS = (
    2048,
    1024,
    512,
    256,
    128,
)  # windows of the multi-resolution distance, in samples; a quarter apart
MEL_BANDS, MEL_WINDOW = 64, 0.046  # seconds
WINDOW = 2048  # samples, of the spectra that bands are cut from
FLOOR = 1e-5  # of magnitude, -100 dB of full scale: below it nothing is heard
TINY = 1e-12


def fidelity(truth_T: Array, made_T: Array, rate: int) -> Mapping[str, float]:
    """The whole-band measures of a reconstruction [T] of `truth` [T]; the longer one is cut to the other's length."""
    x, y = cut(truth_T, made_T)
    return {
        "snr_db": snr(x, y),
        "si_sdr_db": si_sdr(x, y),
        "stft_distance": stft_distance(x, y),
        "spectral_convergence_db": convergence(x, y),
        "mel_distance_db": mel_distance(x, y, rate),
    }


def cut(x_T: Array, y_T: Array) -> tuple[Array, Array]:
    """Both at the length of the shorter, in double precision; what is shorter than a window gets silence at its end."""
    length = min(len(x_T), len(y_T))
    x, y = (np.pad(a[:length].astype(np.float64), (0, max(0, WINDOW - length))) for a in (x_T, y_T))
    return x, y


def snr(x_T: Array, y_T: Array) -> float:
    """10 log10(|x|^2 / |x - y|^2), at most 120 dB (no error at all); NaN for silence."""
    return decibels(float(x_T @ x_T), float((x_T - y_T) @ (x_T - y_T)))


def decibels(signal: float, noise: float, most: float = 120.0) -> float:
    return (
        min(most, 10 * np.log10(signal / max(noise, signal * 10 ** (-most / 10))))
        if signal > 0
        else float("nan")
    )


def si_sdr(x_T: Array, y_T: Array) -> float:
    """SNR against the multiple of x nearest to y, both without their means: volume is no error (Le Roux 2019)."""
    x, y = x_T - x_T.mean(), y_T - y_T.mean()
    target = (y @ x) / max(x @ x, TINY) * x
    return decibels(float(target @ target), float((y - target) @ (y - target)))


def convergence(x_T: Array, y_T: Array) -> float:
    """20 log10(|M(x) - M(y)| / |M(x)|) of the magnitudes that Jukebox judged by (2048 bins, window 1536, hop 256)."""
    x, y = (torch.from_numpy(a.astype(np.float32))[None] for a in (x_T, y_T))
    return float(20 * torch.log10(spectral_convergence(STFT(), x, y).clamp(min=1e-6)))


def stft_distance(x_T: Array, y_T: Array) -> float:
    """Mean over five resolutions of spectral convergence plus the mean distance of log magnitudes (Yamamoto 2020)."""
    found = []
    for window in RESOLUTIONS:
        stft = STFT(fft=window, hop=window // 4, window=window)
        x, y = (magnitude(stft, a) for a in (x_T, y_T))
        apart = np.abs(np.log(np.maximum(x, FLOOR)) - np.log(np.maximum(y, FLOOR))).mean()
        found.append(np.linalg.norm(x - y) / np.maximum(np.linalg.norm(x), TINY) + apart)
    return float(np.mean(found))


def magnitude(stft: STFT, x_T: Array) -> Array:
    """[K, F], a sine of amplitude a counting as a / 2."""
    return stft.magnitude(torch.from_numpy(x_T.astype(np.float32))[None])[0].numpy() / (
        stft.window / 2
    )


def mel_distance(x_T: Array, y_T: Array, rate: int) -> float:
    """Mean distance in dB of the mel spectra (64 bands from 40 Hz to the highest frequency), floored at -100 dB."""
    return float(np.abs(log_mel(x_T, rate) - log_mel(y_T, rate)).mean())


def log_mel(x_T: Array, rate: int) -> Array:
    """[F, B] dB."""
    window = window_size(MEL_WINDOW, rate)
    power_KF = magnitude(STFT(fft=window, hop=window // 4, window=window), x_T) ** 2
    bands_KB = mel_bands(np.fft.rfftfreq(window, 1 / rate), 40.0, rate / 2, MEL_BANDS)
    return 10 * np.log10(power_KF.T @ bands_KB + FLOOR**2)


def bands(rate: int) -> list[tuple[int, int]]:
    """(low, high) Hz of the octaves that audio of a rate holds; the last one may be cut."""
    return [(low, min(high, rate // 2)) for low, high in pairwise(EDGES) if low < rate / 2]


def by_band(truth_T: Array, made_T: Array, rate: int) -> dict[str, dict[str, float]]:
    """{"band_0250_0500": {"snr_db", "spectral_convergence_db"}}: of the STFT's bins within each octave.

    The transform is of full overlap with a Hann window, so that a band's error energy is that of its part of the wave.
    """
    x, y = cut(truth_T, made_T)
    x_KF, y_KF = (complex_stft(a) for a in (x, y))
    hertz_K = np.fft.rfftfreq(WINDOW, 1 / rate)
    found = {}
    for low, high in bands(rate):
        within = (hertz_K >= low) & (hertz_K < high)
        a, b = x_KF[within], y_KF[within]
        signal, noise = float((np.abs(a) ** 2).sum()), float((np.abs(a - b) ** 2).sum())
        apart = float(((np.abs(a) - np.abs(b)) ** 2).sum())
        found[f"band_{low:05d}_{high:05d}"] = {
            "snr_db": decibels(signal, noise),
            "spectral_convergence_db": -decibels(signal, apart),
        }
    return found


def complex_stft(x_T: Array) -> Array:
    """[K, F] complex64."""
    x, window = torch.from_numpy(x_T.astype(np.float32)), torch.hann_window(WINDOW)
    return torch.stft(x, WINDOW, WINDOW // 4, window=window, return_complex=True).numpy()
