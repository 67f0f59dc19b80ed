"""How near a reconstruction is to its original: in the wave, in its spectra, and in each band of frequencies."""

# T samples   F frames   K frequency bins   B mel bands
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch

from megajukebox.data.spectra import mel_bands, window_size
from megajukebox.models.losses import STFT, spectral_convergence

Array = np.ndarray
OCTAVE_EDGES = (0, 125, 250, 500, 1000, 2000, 4000, 8000, 16000)  # Hz
STFT_WINDOWS = (
    2048,
    1024,
    512,
    256,
    128,
)  # samples, of the multi-resolution distance; a quarter apart
MEL_BANDS = 64
LOWEST_MEL_HERTZ = 40.0
MEL_WINDOW_SECONDS = 0.046
BAND_WINDOW = 2048  # samples, of the spectra that bands are cut from
FLOOR = 1e-5  # of magnitude, -100 dB of full scale: below it nothing is audible
TINY = 1e-12  # keeps silence from dividing by zero
MAX_DECIBELS = 120.0  # reported where there is no error at all


def fidelity(truth_T: Array, other_T: Array, rate: int) -> Mapping[str, float]:
    """The whole-band metrics of a reconstruction [T] of `truth` [T]; the longer one is cut to the other's length."""
    x_T, y_T = cut_to_same_length(truth_T, other_T)
    mel_difference = mel_decibels(x_T, rate) - mel_decibels(y_T, rate)
    # Jukebox's own magnitudes: 2048 bins, window 1536, hop 256.
    x = torch.from_numpy(x_T.astype(np.float32))[None]
    y = torch.from_numpy(y_T.astype(np.float32))[None]
    convergence = float(20 * torch.log10(spectral_convergence(STFT(), x, y).clamp(min=1e-6)))
    return {
        "snr_db": snr(x_T, y_T),
        "si_sdr_db": si_sdr(x_T, y_T),
        "stft_distance": stft_distance(x_T, y_T),
        "spectral_convergence_db": convergence,
        "mel_distance_db": float(np.abs(mel_difference).mean()),
    }


def cut_to_same_length(x_T: Array, y_T: Array) -> tuple[Array, Array]:
    """Both at the length of the shorter, in double precision; what is shorter than a window gets silence at its end."""
    length = min(len(x_T), len(y_T))
    missing = max(0, BAND_WINDOW - length)
    x = np.pad(x_T[:length].astype(np.float64), (0, missing))
    return x, np.pad(y_T[:length].astype(np.float64), (0, missing))


def snr(x_T: Array, y_T: Array) -> float:
    """10 log10(|x|^2 / |x - y|^2), at most 120 dB (no error at all); NaN for silence."""
    return decibels(float(x_T @ x_T), float((x_T - y_T) @ (x_T - y_T)))


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise), at most MAX_DECIBELS; NaN without a signal."""
    if signal <= 0:
        return float("nan")
    least_noise = signal * 10 ** (-MAX_DECIBELS / 10)
    return min(MAX_DECIBELS, 10 * np.log10(signal / max(noise, least_noise)))


def si_sdr(x_T: Array, y_T: Array) -> float:
    """SNR against the multiple of x nearest to y, both without their means: volume is no error (Le Roux 2019)."""
    x = x_T - x_T.mean()
    y = y_T - y_T.mean()
    target = (y @ x) / max(x @ x, TINY) * x
    return decibels(float(target @ target), float((y - target) @ (y - target)))


def stft_distance(x_T: Array, y_T: Array) -> float:
    """Mean over five resolutions of spectral convergence plus the mean distance of log magnitudes (Yamamoto 2020)."""
    distances = []
    for window in STFT_WINDOWS:
        stft = STFT(fft=window, hop=window // 4, window=window)
        x = magnitude(stft, x_T)
        y = magnitude(stft, y_T)
        log_distance = np.abs(np.log(np.maximum(x, FLOOR)) - np.log(np.maximum(y, FLOOR))).mean()
        relative = np.linalg.norm(x - y) / np.maximum(np.linalg.norm(x), TINY)
        distances.append(relative + log_distance)
    return float(np.mean(distances))


def magnitude(stft: STFT, x_T: Array) -> Array:
    """[K, F], a sine of amplitude a counting as a / 2."""
    x = torch.from_numpy(x_T.astype(np.float32))[None]
    return stft.magnitude(x)[0].numpy() / (stft.window / 2)


def mel_decibels(x_T: Array, rate: int) -> Array:
    """[F, B] dB of the mel spectra: 64 bands from 40 Hz to the highest frequency, floored at -100 dB."""
    window = window_size(MEL_WINDOW_SECONDS, rate)
    power_KF = magnitude(STFT(fft=window, hop=window // 4, window=window), x_T) ** 2
    hertz_K = np.fft.rfftfreq(window, 1 / rate)
    filters_KB = mel_bands(hertz_K, LOWEST_MEL_HERTZ, rate / 2, MEL_BANDS)
    return 10 * np.log10(power_KF.T @ filters_KB + FLOOR**2)


def octave_bands(rate: int) -> list[tuple[int, int]]:
    """(low, high) Hz of the octaves that audio of a rate holds; the last one may be cut."""
    return [(low, min(high, rate // 2)) for low, high in pairwise(OCTAVE_EDGES) if low < rate / 2]


def band_name(low: int, high: int) -> str:
    """`band_00250_00500`, of a band in Hz."""
    return f"band_{low:05d}_{high:05d}"


def fidelity_by_band(truth_T: Array, other_T: Array, rate: int) -> dict[str, dict[str, float]]:
    """{"band_0250_0500": {"snr_db", "spectral_convergence_db"}}: of the STFT's bins within each octave.

    The transform is of full overlap with a Hann window, so that a band's error energy is that of its part
    of the wave.
    """
    x_T, y_T = cut_to_same_length(truth_T, other_T)
    x_KF = complex_stft(x_T)
    y_KF = complex_stft(y_T)
    hertz_K = np.fft.rfftfreq(BAND_WINDOW, 1 / rate)
    metrics = {}
    for low, high in octave_bands(rate):
        within_K = (hertz_K >= low) & (hertz_K < high)
        x = x_KF[within_K]
        y = y_KF[within_K]
        signal = float((np.abs(x) ** 2).sum())
        noise = float((np.abs(x - y) ** 2).sum())
        magnitude_noise = float(((np.abs(x) - np.abs(y)) ** 2).sum())
        metrics[band_name(low, high)] = {
            "snr_db": decibels(signal, noise),
            "spectral_convergence_db": -decibels(signal, magnitude_noise),
        }
    return metrics


def complex_stft(x_T: Array) -> Array:
    """[K, F] complex64."""
    x = torch.from_numpy(x_T.astype(np.float32))
    window = torch.hann_window(BAND_WINDOW)
    return torch.stft(x, BAND_WINDOW, BAND_WINDOW // 4, window=window, return_complex=True).numpy()
