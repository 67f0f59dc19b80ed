"""Measures of a reconstruction against what they must be: planted noise, volume, bands, identical audio."""

import numpy as np
import pytest

from megajukebox.evaluation.evaluators.reconstruction import (
    fidelity,
    fidelity_by_band,
    octave_bands,
    si_sdr,
    snr,
)

RATE = 11025


def noise(seed: int, seconds: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(int(seconds * RATE)).astype(np.float32) * 0.1


def within(wave: np.ndarray, low: float, high: float) -> np.ndarray:
    """The part of a wave between two frequencies."""
    spectrum, hertz = np.fft.rfft(wave), np.fft.rfftfreq(len(wave), 1 / RATE)
    return np.fft.irfft(spectrum * ((hertz >= low) & (hertz < high)), len(wave)).astype(np.float32)


@pytest.mark.parametrize("planted", [-3.0, 0.0, 12.0, 40.0])
def test_snr_is_the_planted_one(planted: float) -> None:
    x, n = noise(0), noise(1)
    n *= np.linalg.norm(x) / np.linalg.norm(n) * 10 ** (-planted / 20)
    assert fidelity(x, x + n, RATE)["snr_db"] == pytest.approx(planted, abs=1e-3)


def test_si_sdr_forgives_volume_and_snr_does_not() -> None:
    x = noise(0).astype(np.float64)
    n = noise(1).astype(np.float64)
    n -= (n @ x) / (x @ x) * x  # an error that is no multiple of the song
    n *= np.linalg.norm(x) / np.linalg.norm(n) * 10 ** (-12 / 20)
    assert si_sdr(x, 0.3 * (x + n)) == pytest.approx(12, abs=0.01)
    assert snr(x, 0.3 * (x + n)) < 4


def test_identical_audio_is_perfect_in_every_measure() -> None:
    found = fidelity(noise(0), noise(0), RATE)
    assert found["snr_db"] == found["si_sdr_db"] == 120
    assert found["stft_distance"] == found["mel_distance_db"] == 0
    assert found["spectral_convergence_db"] == pytest.approx(-120)


def test_shuffled_audio_is_as_far_off_as_other_audio() -> None:
    x = noise(0) * np.repeat(np.random.default_rng(3).random(30), 3 * RATE // 30 + 1)[
        : 3 * RATE
    ].astype(np.float32)
    shuffled = np.random.default_rng(2).permutation(x)
    found = fidelity(x, shuffled, RATE)
    assert found["snr_db"] == pytest.approx(
        -3, abs=0.3
    )  # the energies of two independent waves add up
    assert found["stft_distance"] > 0.5


def test_twice_the_volume_is_six_decibels_of_mel_distance() -> None:
    x = noise(0)
    assert fidelity(x, 2 * x, RATE)["mel_distance_db"] == pytest.approx(20 * np.log10(2), abs=0.01)
    assert fidelity(x, 2 * x, RATE)["spectral_convergence_db"] == pytest.approx(0, abs=0.01)


def test_an_error_in_one_band_is_seen_in_that_band_alone() -> None:
    x = noise(0)
    error = within(noise(1), 1100, 1900)
    found = fidelity_by_band(x, x + error, RATE)
    signal, wrong = within(x, 1000, 2000), error
    planted = 10 * np.log10((signal @ signal) / (wrong @ wrong))
    assert found["band_01000_02000"]["snr_db"] == pytest.approx(planted, abs=0.3)
    assert all(row["snr_db"] > 40 for band, row in found.items() if band != "band_01000_02000")


def test_bands_are_octaves_up_to_half_the_rate() -> None:
    assert octave_bands(11025)[0] == (0, 125) and octave_bands(11025)[-1] == (4000, 5512)
    assert octave_bands(44100)[-1] == (8000, 16000)


def test_a_song_of_a_tenth_of_a_second_is_measured_too() -> None:
    x = noise(0, 0.1)
    assert np.isfinite(list(fidelity(x, 0.9 * x, RATE).values())).all()
