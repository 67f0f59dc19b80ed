"""Metrics of noise against closed forms: white noise, planted noise and volume, tones, codes that stand still."""

import numpy as np
import pytest

from megajukebox.evaluation.evaluators.codebook import repeat_metrics
from megajukebox.evaluation.evaluators.noise import noise_metrics, peakiness_metrics
from megajukebox.evaluation.reporting.regression_gate import compare

RATE = 11025
Array = np.ndarray


def white(seed: int, level: float, rate: int = RATE, seconds: float = 8.1) -> Array:
    noise = np.random.default_rng(seed).standard_normal(int(seconds * rate))
    return (level * noise).astype(np.float32)


def tones(rate: int = RATE, seconds: float = 8.1) -> Array:
    """Steady harmonics of 220 Hz."""
    time = np.arange(int(seconds * rate)) / rate
    number = np.arange(1, 15)[:, None]
    waves = np.sin(2 * np.pi * 220 * number * time) / (8 * number)
    return waves.sum(axis=0).astype(np.float32)


@pytest.mark.parametrize("rate", [11025, 44100])
def test_white_noise_has_a_peakiness_of_two_and_a_half_decibels(rate: int) -> None:
    assert peakiness_metrics(white(0, 0.1, rate), rate)["peakiness_db"] == pytest.approx(
        2.5, abs=0.1
    )


def test_tones_are_peaky_at_any_volume_and_noise_takes_it_away() -> None:
    clean = peakiness_metrics(tones(), RATE)["peakiness_db"]
    assert clean > 15
    assert peakiness_metrics(tones() / 10, RATE)["peakiness_db"] == pytest.approx(clean, abs=0.1)
    hissing = tones() + white(1, 0.05)
    assert 2.5 < peakiness_metrics(hissing, RATE)["peakiness_db"] < clean - 5


@pytest.mark.parametrize("ratio", [0.25, 1.0, 9.0])
def test_valley_noise_is_the_planted_one(ratio: float) -> None:
    """A tone in faint noise; more noise of `ratio` times its power: 10 log10(1 + ratio) in the valleys."""
    # In the middle of a bin, and mirrored at both ends as it would go on: a tone that does not leak.
    time = np.arange(86 * 1024 + 1)
    tone = 0.5 * np.cos(2 * np.pi * 93 / 1024 * time).astype(np.float32)
    x = tone + white(0, 0.001)[: len(tone)]
    y = x + white(1, 0.001 * ratio**0.5)[: len(tone)]
    metrics = noise_metrics(x, y, RATE)
    expected = 10 * np.log10(1 + ratio)
    assert metrics["valley_noise_db"] == pytest.approx(expected, abs=0.1)
    assert metrics["band_02000_04000/valley_noise_db"] == pytest.approx(expected, abs=0.1)


def test_noise_in_one_octave_is_heard_in_that_octave_alone() -> None:
    x = tones() + white(0, 0.001)
    spectrum = np.fft.rfft(white(1, 0.01))
    hertz = np.fft.rfftfreq(len(x), 1 / RATE)
    y = x + np.fft.irfft(spectrum * ((hertz > 2100) & (hertz < 3900)), len(x))
    metrics = noise_metrics(x, y, RATE)
    assert metrics["band_02000_04000/valley_noise_db"] > 5
    assert metrics["band_00500_01000/valley_noise_db"] == pytest.approx(0, abs=0.1)
    assert metrics["band_02000_04000/log_magnitude_db"] > 5
    assert metrics["band_00500_01000/log_magnitude_db"] < 0.2


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_volume_is_its_decibels(gain: float) -> None:
    x = white(0, 0.1)
    metrics = noise_metrics(x, gain * x, RATE)
    assert metrics["log_magnitude_db"] == pytest.approx(abs(20 * np.log10(gain)), abs=0.05)
    assert metrics["valley_noise_db"] == pytest.approx(20 * np.log10(gain), abs=0.05)


def test_the_original_itself_is_clean_and_silence_has_no_metrics() -> None:
    metrics = noise_metrics(tones(), tones(), RATE)
    assert metrics["valley_noise_db"] == metrics["log_magnitude_db"] == 0
    silence = noise_metrics(white(0, 1e-4), white(1, 1e-4), RATE)
    assert all(np.isnan(silence[name]) for name in ("valley_noise_db", "peakiness_db"))
    assert noise_metrics(tones()[:50], tones()[:50], RATE)["log_magnitude_db"] == 0


def test_repeated_codes_are_counted_and_compared_with_real_songs() -> None:
    moving = {"a": np.arange(10), "b": np.arange(7)}
    held = {"a": np.repeat(np.arange(5), 2), "b": np.repeat(np.arange(3), 3)}
    by_name = {metric.name: metric for metric in repeat_metrics(held, moving)}
    share = (5 / 9 + 6 / 8) / 2
    assert by_name["repeat_share"].value == pytest.approx(share)
    assert by_name["repeat_difference"].value == pytest.approx(share)
    same = {metric.name: metric.value for metric in repeat_metrics(held, held)}
    assert same["repeat_difference"] == pytest.approx(0)


@pytest.mark.parametrize("change, worse", [(+1.0, True), (-1.0, False), (+0.1, False)])
def test_the_gate_hears_noise_in_one_direction(change: float, worse: bool) -> None:
    name = "reconstruction/bottom/valley_noise_db"
    noise = np.random.default_rng(0).normal(4, 1, 12)

    def report(values: Array) -> dict:
        items = {f"song{n}": float(value) for n, value in enumerate(values)}
        metric = {"value": float(values.mean()), "better": -1, "items": items, "slices": {}}
        return {
            "target": {"kind": "vqvae"},
            "references": [],
            "settings": {},
            "songs": {},
            "metrics": {name: metric},
        }

    jitter = np.random.default_rng(1).normal(0, 0.02, 12)
    changes = compare(report(noise + change + jitter), report(noise))
    assert [item.worse for item in changes] == [worse]
