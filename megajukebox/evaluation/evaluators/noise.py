"""How noisy audio is: hiss between the harmonics of the original, peakiness of spectra, error of log magnitudes.

What a VQ-VAE's own loss cannot hear: 30 dB below the loudest bin of a moment, an error changes neither the wave nor
a norm of linear magnitudes, and yet it is heard as hiss.
"""

# T samples   F frames   K frequency bins
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from megajukebox.data.spectra import window_size
from megajukebox.evaluation.evaluators.reconstruction import band_name, octave_bands

Array = np.ndarray
WINDOW_SECONDS = 0.093  # 1024 samples at 11,025 Hz: harmonics 50 Hz apart are told apart
LOG_WINDOW_SECONDS = (0.186, 0.093, 0.046, 0.023)  # 2048, 1024, 512 and 256 samples at 11,025 Hz
VALLEY_DB = 30.0  # below the loudest bin of its frame, a bin is a valley
LOUD_FRAME_DB = 30.0  # frames within it of the loudest count: quieter ones are pauses
LOG_FLOOR_DB = 80.0  # below the loudest bin of the original nothing counts
SILENCE_DB = -46.0  # of full scale; a quieter recording has no metrics of noise
INAUDIBLE_DB = -100.0  # of a full-scale sine: a bin of the original counts for no less
PEAK_BANDS = (
    (100, 500),
    (500, 1000),
    (1000, 2000),
    (2000, 4000),
)  # Hz: below lie few bins, above cymbals
PEAK_FLOOR = (
    1e-6  # of the mean power: keeps digital silence in a band from ruling the geometric mean
)
MIN_BAND_BINS = 8  # a geometric mean of fewer says nothing


def noise_metrics(truth_T: Array, other_T: Array, rate: int) -> dict[str, float]:
    """Metrics of a reconstruction [T] of `truth` [T]: of the whole band, and of each octave as "band_.../metric".

    NaN where the truth is too quiet to have any, or an octave has no valley.
    """
    x_T, y_T = same_length(truth_T, other_T, rate)
    metrics = peakiness_metrics(y_T, rate)
    if is_quiet(x_T):
        return metrics | {"valley_noise_db": float("nan"), "log_magnitude_db": float("nan")}
    octaves = octave_bands(rate)
    bands = [(0, rate), *octaves]
    prefixes = ["", *map(band_prefix, octaves)]
    found = valleys(x_T, y_T, rate)
    hertz_K = bin_hertz(rate)
    log_magnitudes = log_magnitude_distance(x_T, y_T, rate, bands)
    for prefix, (low, high), log_magnitude in zip(prefixes, bands, log_magnitudes):
        within_K = (hertz_K >= low) & (hertz_K < high)
        metrics[prefix + "valley_noise_db"] = valley_noise(*found, within_K)
        metrics[prefix + "log_magnitude_db"] = log_magnitude
    return metrics


def peakiness_metrics(audio_T: Array, rate: int) -> dict[str, float]:
    """What needs no original: peakiness of the whole band, and of each octave of eight bins or more."""
    metrics = {"peakiness_db": peakiness(audio_T, rate)}
    for band, value in peakiness_by_band(audio_T, rate, octave_bands(rate)):
        metrics[band_prefix(band) + "peakiness_db"] = value
    return metrics


def band_prefix(band: tuple[int, int]) -> str:
    """Prefix of the names of a band's metrics: `band_00250_00500/`."""
    return f"{band_name(*band)}/"


def same_length(x_T: Array, y_T: Array, rate: int) -> tuple[Array, Array]:
    """Both at the length of the shorter; what is shorter than the longest window gets silence at its end."""
    length = min(len(x_T), len(y_T))
    missing = max(0, window_size(LOG_WINDOW_SECONDS[0], rate) - length)
    x = np.pad(x_T[:length].astype(np.float32), (0, missing))
    return x, np.pad(y_T[:length].astype(np.float32), (0, missing))


def is_quiet(x_T: Array) -> bool:
    """Whether the root mean square lies below SILENCE_DB."""
    return float(np.mean(x_T.astype(np.float64) ** 2)) < 10 ** (SILENCE_DB / 10)


def bin_hertz(rate: int) -> Array:
    """[K] frequencies of the bins of `power`."""
    return np.fft.rfftfreq(window_size(WINDOW_SECONDS, rate), 1 / rate)


def power(x_T: Array, window: int) -> Array:
    """[K, F] power by a Hann window, a quarter of it apart; a full-scale sine has 0.25 at its bin."""
    hann = torch.hann_window(window)
    x = torch.from_numpy(np.ascontiguousarray(x_T, dtype=np.float32))
    spectrum = torch.stft(x, window, window // 4, window=hann, return_complex=True)
    return (spectrum.abs() / (window / 2)).square().numpy()


# ---- Valleys


def valleys(x_T: Array, y_T: Array, rate: int) -> tuple[Array, Array, Array]:
    """Power [K, F] of x and of y in the loud frames of x, and which bins [K, F] are valleys of x."""
    window = window_size(WINDOW_SECONDS, rate)
    x_KF = power(x_T, window)
    y_KF = power(y_T, window)
    loud_F = loud_frames(x_KF)
    x_KF = x_KF[:, loud_F]
    valley_KF = x_KF < x_KF.max(axis=0) * 10 ** (-VALLEY_DB / 10)
    inaudible = 10 ** (INAUDIBLE_DB / 10) / 4
    return np.maximum(x_KF, inaudible), np.maximum(y_KF[:, loud_F], inaudible), valley_KF


def loud_frames(power_KF: Array) -> Array:
    """[F] whether a frame lies within LOUD_FRAME_DB of the loudest."""
    frame_F = power_KF.sum(axis=0)
    return frame_F > frame_F.max() * 10 ** (-LOUD_FRAME_DB / 10)


def valley_noise(x_KF: Array, y_KF: Array, valley_KF: Array, within_K: Array) -> float:
    """10 log10 of the power of y over that of x in the valleys of a band: 0 is as clean as x. NaN without valleys."""
    chosen_KF = valley_KF[within_K]
    truth = x_KF[within_K][chosen_KF].sum(dtype=np.float64)
    if not truth:
        return float("nan")
    return float(10 * np.log10(y_KF[within_K][chosen_KF].sum(dtype=np.float64) / truth))


# ---- Log magnitudes


def log_magnitude_distance(
    x_T: Array, y_T: Array, rate: int, bands: Sequence[tuple[int, int]]
) -> list[float]:
    """Mean |20 log10(|Y| / |X|)| of each band, over four windows; both magnitudes floored 80 dB below the loudest."""
    sums = np.zeros(len(bands))
    for seconds in LOG_WINDOW_SECONDS:
        window = window_size(seconds, rate)
        x_KF = np.sqrt(power(x_T, window))
        y_KF = np.sqrt(power(y_T, window))
        floor = max(float(x_KF.max()) * 10 ** (-LOG_FLOOR_DB / 20), 1e-12)
        error_KF = np.abs(20 * np.log10((y_KF + floor) / (x_KF + floor)))
        hertz_K = np.fft.rfftfreq(window, 1 / rate)
        for index, (low, high) in enumerate(bands):
            sums[index] += error_KF[(hertz_K >= low) & (hertz_K < high)].mean()
    return [float(total / len(LOG_WINDOW_SECONDS)) for total in sums]


# ---- Peakiness


def peakiness(y_T: Array, rate: int) -> float:
    """Mean over PEAK_BANDS of arithmetic over geometric mean of power, in dB: white noise 2.5, clean tones 8 to 20.

    Needs no original. Compare songs of one corpus alone: real recordings differ from each other.
    """
    values = [value for _, value in peakiness_by_band(y_T, rate, PEAK_BANDS)]
    return float(np.mean(values)) if values else float("nan")


def peakiness_by_band(
    y_T: Array, rate: int, bands: Sequence[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], float]]:
    """(band, peakiness in dB) of bands of MIN_BAND_BINS or more, in frames within 30 dB of the loudest.

    White noise: its power is exponentially distributed, so 10 log10(1 / exp(-0.5772)) = 2.51 dB (Euler's constant),
    a little less over few bins.
    """
    window = window_size(WINDOW_SECONDS, rate)
    y_T = np.pad(y_T, (0, max(0, window - len(y_T))))
    if is_quiet(y_T):
        return
    hertz_K = bin_hertz(rate)
    power_KF = power(y_T, window)
    power_KF = power_KF[:, loud_frames(power_KF)]
    floor = PEAK_FLOOR * power_KF.mean()
    for band in bands:
        inside_KF = power_KF[(hertz_K > band[0]) & (hertz_K < band[1])] + floor
        if len(inside_KF) >= MIN_BAND_BINS:
            arithmetic_F = 10 * np.log10(inside_KF.mean(axis=0))
            geometric_F = 10 * np.log10(inside_KF).mean(axis=0)
            yield band, float((arithmetic_F - geometric_F).mean())
