"""Changes of volume and tone: bounded, reproducible, off by default."""

from pathlib import Path

import numpy as np
import pytest
from fixtures.tiny_shards import CLIP, RATE, batches, same, steps, write_songs

from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.augment import Augment, equalise
from megajukebox.data.stream.sample_order import rng
from megajukebox.data.stream.song_dataset import SongClips


def sine(hertz: float) -> np.ndarray:
    return 0.1 * np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE)


def loudness(x: np.ndarray) -> float:
    return float(20 * np.log10(np.sqrt((x**2).mean())))


def test_volume_stays_within_its_decibels_and_full_scale() -> None:
    changed = [
        loudness(Augment(volume_db=6)(sine(440), RATE, rng(0, "clip", p))) for p in range(50)
    ]
    gains = np.array(changed) - loudness(sine(440))
    assert gains.min() > -6.01 and gains.max() < 6.01 and np.ptp(gains) > 8
    assert (
        max(
            np.abs(Augment(volume_db=24)(9 * sine(440), RATE, rng(0, "clip", p))).max()
            for p in range(9)
        )
        <= 1
    )


def test_the_equaliser_has_the_gain_asked_for_at_its_bands() -> None:
    for band, hertz in enumerate((60, 250, 1000, 4000)):
        gains = np.zeros(5)
        gains[band] = -9.0
        assert loudness(equalise(sine(hertz), RATE, gains)) - loudness(
            sine(hertz)
        ) == pytest.approx(-9.0, abs=0.01)
    assert np.allclose(equalise(sine(440), RATE, np.zeros(5)), sine(440))


def test_augmentation_follows_the_position_and_is_part_of_the_state(tmp_path: Path) -> None:
    shards = ShardSet(write_songs(tmp_path / "songs"))
    plain, changed = SongClips(shards, CLIP), SongClips(shards, CLIP, augment=Augment(3.0, 3.0))
    assert same(steps(batches(changed), 3), steps(batches(changed), 3))
    assert not same(steps(batches(changed), 3), steps(batches(plain), 3))
    assert "volume_db" not in batches(plain).state()
    with pytest.raises(ValueError, match="volume_db"):
        batches(changed).identity.check(batches(plain).state())
    assert np.array_equal(plain.read(3, 1, None)["audio"], changed.read(3, 1, None)["audio"]), (
        "not when judging"
    )
