"""Loudness as BS.1770 says, peaks, clipping, silence and DC, on waves whose figures are known."""

import numpy as np
import pytest

from megajukebox.evaluation.evaluators.loudness import k_gain, sound_metrics


def sine(hertz: float, seconds: float, rate: int, amplitude: float = 1.0) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(
        np.float32
    )


@pytest.mark.parametrize("rate", [11025, 44100, 48000])
def test_a_full_scale_sine_of_997_hz_in_one_channel_is_minus_3_01_lufs(rate: int) -> None:
    """The reference of BS.1770-4, annex 1."""
    assert sound_metrics(sine(997, 5, rate), rate)["loudness_lufs"] == pytest.approx(
        -3.01, abs=0.02
    )


def test_loudness_follows_the_volume() -> None:
    assert sound_metrics(sine(997, 5, 48000, 0.1), 48000)["loudness_lufs"] == pytest.approx(
        -23.01, abs=0.02
    )


def test_quiet_and_silent_parts_do_not_count() -> None:
    """Gating: 10 s at -23.01, then 20 s more than 10 LU below it, then silence."""
    loud, quiet = sine(997, 10, 48000, 0.1), sine(997, 20, 48000, 0.01)
    whole = np.concatenate([loud, quiet, np.zeros(48000 * 10, np.float32)])
    found = sound_metrics(whole, 48000)
    assert found["loudness_lufs"] == pytest.approx(-23.01, abs=0.1)
    assert found["silent"] == pytest.approx(0.25, abs=0.02)


def test_the_weighting_is_that_of_the_standard() -> None:
    """Decibels at some frequencies: a shelf of +4 above 2 kHz, and a high pass at 38 Hz."""
    gain = 20 * np.log10(k_gain(np.array([10.0, 997.0, 10000.0])))
    assert (
        gain[0] < -20
        and gain[1] == pytest.approx(0.691, abs=0.01)
        and gain[2] == pytest.approx(4.0, abs=0.1)
    )


def test_the_peak_between_samples_is_found() -> None:
    """A sine of a quarter of the rate, met at 45 degrees: its samples stay 3 dB below its peak."""
    wave = np.sin(np.pi / 4 + np.pi / 2 * np.arange(48000)).astype(np.float32)
    assert np.abs(wave).max() < 0.71
    assert sound_metrics(wave, 48000)["true_peak_db"] == pytest.approx(0, abs=0.05)


def test_flat_tops_count_as_clipping_and_single_peaks_do_not() -> None:
    wave = sine(100, 1, 48000, 0.5)
    wave[1000:1040] = 1.0
    wave[2000] = wave[3000] = -1.0
    assert sound_metrics(wave, 48000)["clipped"] == pytest.approx(40 / 48000)


def test_dc_is_the_mean() -> None:
    assert sound_metrics(sine(100, 1, 48000, 0.5) - 0.25, 48000)["dc"] == pytest.approx(
        0.25, abs=1e-4
    )


def test_silence_and_a_blink_of_sound_have_figures() -> None:
    assert sound_metrics(np.zeros(48000, np.float32), 48000)["silent"] == 1
    assert np.isfinite(list(sound_metrics(sine(100, 0.05, 8000), 8000).values())).all()
