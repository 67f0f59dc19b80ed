"""One module of spectra gives what each of its users computed by itself before."""

import numpy as np
import pytest
from fixtures.tiny_shards import ramp
from matplotlib import colormaps

from megajukebox.data.spectra import (
    HIGHEST_HERTZ,
    frame_spectra,
    mel_bands,
    spectrogram,
    window_size,
)
from megajukebox.evaluation.evaluators import embedding
from megajukebox.explorer.loaders.spectrograms import COLUMNS, LOWEST_HZ, ROWS, mel_spectrogram, png
from megajukebox.monitoring.exporters.tensorboard import spectrogram_image

RATES = (8000, 11_025, 22_050, 44_100, 48_000)


def noise(rate: int, seconds: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(rate)
    time = np.arange(int(rate * seconds)) / rate
    tone = np.sin(2 * np.pi * 440 * time) * np.exp(-time)
    return (0.3 * tone + 0.05 * rng.standard_normal(len(time))).astype(np.float32)


def explorer_filters_of_before(size: int, rate: int) -> np.ndarray:
    """[ROWS, K] the same triangles by the formula of HTK."""
    bin_hz = rate / size
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (LOWEST_HZ, rate / 2))
    hz = 700 * (10 ** (np.linspace(low, high, ROWS + 2) / 2595) - 1)
    centre = hz[1:-1, None]
    rise = np.maximum(centre - hz[:-2, None], bin_hz)
    fall = np.maximum(hz[2:, None] - centre, bin_hz)
    distance = np.arange(size // 2 + 1) * bin_hz - centre
    inside = np.where(distance < 0, -distance / rise, distance / fall)
    return np.maximum(0, 1 - inside).astype(np.float32)


def explorer_spectrogram_of_before(wave_T: np.ndarray, rate: int) -> np.ndarray:
    size = 2 ** round(np.log2(0.09 * rate))
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    starts = np.linspace(0, len(wave_T), COLUMNS).astype(int)
    padded = np.pad(wave_T, (size // 2, size), mode="reflect")
    frames = padded[starts[:, None] + np.arange(size)] * window
    power_WF = np.abs(np.fft.rfft(frames) / (window.sum() / 2)) ** 2
    filters = explorer_filters_of_before(size, rate)
    return 10 * np.log10(np.maximum(power_WF @ filters.T, 1e-12)).T


@pytest.mark.parametrize("rate", RATES)
def test_the_explorers_pictures_are_the_same_to_the_byte(rate: int) -> None:
    for wave_T in (noise(rate), ramp(3).mean(axis=1), np.zeros(rate, np.float32)):
        before = explorer_spectrogram_of_before(wave_T, rate)
        now = mel_spectrogram(wave_T, rate)
        assert now.dtype == before.dtype and np.abs(now - before).max() < 1e-4
        assert png(now) == png(before)


@pytest.mark.parametrize("rate", RATES)
def test_the_features_of_evaluation_are_the_same_to_the_bit(rate: int) -> None:
    audio = noise(rate)
    size, hop = 2 ** round(np.log2(0.046 * rate)), rate / 100
    starts = np.round(np.arange(int((len(audio) - size) / hop) + 1) * hop).astype(int)
    frames = np.lib.stride_tricks.sliding_window_view(audio, size)[starts]
    frames = frames * np.hanning(size).astype(np.float32)
    hertz = np.fft.rfftfreq(size, 1 / rate)
    wanted = np.abs(np.fft.rfft(frames)[:, hertz <= HIGHEST_HERTZ]) ** 2
    power, kept = spectrogram(audio, rate, step_seconds=0.01)
    assert power.dtype == wanted.dtype and np.array_equal(power, wanted)
    assert np.array_equal(kept, hertz[hertz <= HIGHEST_HERTZ])


@pytest.mark.parametrize("rate", RATES)
def test_the_embeddings_loudness_is_the_same_to_the_bit(rate: int) -> None:
    audio = noise(rate)
    size = 2 ** round(np.log2(0.032 * rate))
    count = int((len(audio) / rate - 0.032) / 0.01) + 1
    starts = np.round(np.arange(count) * 0.01 * rate).astype(int)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(audio, (0, size)), size)
    spectra = np.fft.rfft(windows[starts] * np.hanning(size).astype(np.float32))
    filters = mel_bands(np.fft.rfftfreq(size, 1 / rate), 40.0, min(8000.0, rate / 2), 40)
    power = np.abs(spectra) ** 2 @ filters
    wanted = np.log(power / max(power.mean(), 1e-12) + 1e-3)
    assert np.array_equal(embedding.log_mel(audio, rate), wanted)


def test_the_pictures_of_tensorboard_are_the_same_to_the_byte() -> None:
    for wave_T in (noise(22_050), noise(8000, 90.0)):
        hop = max(256, len(wave_T) // 1200)
        padded = np.pad(wave_T, (0, 1024))
        frames = np.lib.stride_tricks.sliding_window_view(padded, 1024)[::hop] * np.hanning(1024)
        loudness = 20 * np.log10(np.abs(np.fft.rfft(frames, axis=1)).T[:256] + 1e-9)
        share = np.clip((loudness - loudness.max() + 80) / 80, 0, 1)
        wanted = (colormaps["magma"](share[::-1])[..., :3] * 255).astype(np.uint8)
        assert np.array_equal(spectrogram_image(wave_T, 22_050), wanted)


def test_every_bin_between_the_ends_lies_in_a_triangle() -> None:
    for rate in RATES:
        size = window_size(0.05, rate)
        hertz = np.fft.rfftfreq(size, 1 / rate)
        bands = mel_bands(hertz, 40.0, rate / 2, 64)
        assert bands.shape == (size // 2 + 1, 64) and (bands.max(axis=0) > 0).all()
        assert bands.min() >= 0 and bands.max() <= 1


def test_a_frame_of_a_sine_has_its_peak_at_its_frequency() -> None:
    time = np.arange(8000) / 8000
    spectra = frame_spectra(np.sin(2 * np.pi * 1000 * time), np.array([0, 512]), np.hanning(512))
    assert np.abs(spectra).argmax(axis=1).tolist() == [64, 64]
