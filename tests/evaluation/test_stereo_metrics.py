"""Left and right of a reconstruction, by closed forms; and that a stereo VQ-VAE is evaluated on stereo songs."""

from pathlib import Path

import numpy as np
import pytest
from fixtures.tiny_models import little_vqvae
from fixtures.tiny_shards import RATE, ramp, write_songs

from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.evaluation.evaluators.embedding import Embedder
from megajukebox.evaluation.evaluators.stereo import NARROWEST_DB, stereo_metrics, width_db
from megajukebox.evaluation.inputs import EvalSongs
from megajukebox.evaluation.run_metrics import LevelReconstructions


def test_the_width_is_the_power_of_the_side_over_the_mid() -> None:
    rng = np.random.default_rng(0)
    mid, side = rng.standard_normal((2, 20_000))
    side -= mid * (mid @ side) / (mid @ mid)
    side *= np.sqrt((mid @ mid) / (side @ side))
    for gain, expected in ((1.0, 0.0), (0.1, -20.0), (0.0, NARROWEST_DB)):
        wave = np.stack([mid + gain * side, mid - gain * side], axis=1)
        assert width_db(wave) == pytest.approx(expected, abs=1e-9)


def test_a_louder_left_is_an_error_of_the_left_and_of_the_width() -> None:
    wave = np.random.default_rng(1).uniform(-0.5, 0.5, (16_384, 2))
    assert stereo_metrics(wave, wave, 8000) == {
        "channel_mel_distance_db": 0.0,
        "width_error_db": 0.0,
    }
    louder = wave * [2.0, 1.0]
    metrics = stereo_metrics(wave, louder, 8000)
    expected = 20 * np.log10(2) / 2  # 6 dB on one of two sides
    assert metrics["channel_mel_distance_db"] == pytest.approx(expected, abs=0.01)
    folded = np.repeat(wave.mean(axis=1, keepdims=True), 2, axis=1)
    assert stereo_metrics(wave, folded, 8000)["width_error_db"] > 50


def test_a_stereo_vqvae_hears_stereo_and_all_else_hears_the_mean(tmp_path: Path) -> None:
    songs = ShardSet(write_songs(tmp_path / "songs"))
    model = little_vqvae(sample_rate=RATE, channels=2)
    nowhere = Embedder("none", lambda song: np.zeros((1, 2)))
    reconstructions = LevelReconstructions("bottom", model)
    row = 11
    song = EvalSongs(songs, [row], 60.0, channels=2).song(row)
    assert song.stereo is not None
    np.testing.assert_array_equal(song.stereo, ramp(row).astype(np.float32))
    np.testing.assert_allclose(song.audio, ramp(row).mean(axis=1), atol=1e-6)
    reconstructions.add(song, None, nowhere)
    metrics = reconstructions.rows[song.key]
    assert {"channel_mel_distance_db", "width_error_db", "snr_db"} <= set(metrics)
    assert EvalSongs(songs, [row], 60.0).song(row).stereo is None
