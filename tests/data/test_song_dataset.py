"""Clips of songs: where they lie, how they are mixed, which songs are held out."""

import json
from pathlib import Path

import numpy as np
import pytest
from fixtures.paths import SHARED
from fixtures.tiny_shards import (
    CLIP,
    SONGS,
    frames_of,
    write_songs,
)

from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.song_dataset import SongClips, moved_inside, split

FIXTURE = SHARED / "parity" / "misc" / "meta.json"


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("sets") / "songs")


def test_clips_are_where_the_released_code_puts_them() -> None:
    """Needs the recordings in ../shared; skips without them."""
    if not FIXTURE.is_file():
        pytest.skip("the recordings in ../shared are not here")
    fixture = json.loads(FIXTURE.read_text())["chunk_selection"]
    length, ends = fixture["sample_length"], np.cumsum(fixture["durations"])
    for case in fixture["cases"]:
        start = case["item"] * length + case["shift"]
        song = int(np.searchsorted(ends, start + length // 2))
        duration = fixture["durations"][song]
        assert [song, moved_inside(start - int(ends[song] - duration), length, duration)] == case[
            "result"
        ]


def test_training_clips_are_shifted_and_mixed_at_random_and_lie_inside_their_song(
    songs: Path,
) -> None:
    source = SongClips(ShardSet(songs), CLIP)
    starts, slopes = set(), set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x = source.read(7, 2, rng)["audio"][:, 0].astype(np.float64)
        slope = (x[-1] - x[0]) / (CLIP - 1) * 2**15  # 2 mix - 1
        slopes.add(round(slope, 3))
        if abs(slope) > 0.1:
            starts.add(round((x[0] - 7 / 16) * 2**15 / slope))
    assert len(slopes) > 40
    assert len(starts) > 40
    assert min(starts) >= 2 * CLIP - CLIP // 2 and max(starts) < 2 * CLIP + CLIP // 2


def test_songs_shorter_than_a_clip_are_left_out_and_counted(songs: Path) -> None:
    source = SongClips(ShardSet(songs), clip=4000)
    assert (
        source.report()["songs_too_short"]
        == sum(frames_of(song) < 4000 for song in range(SONGS))
        > 0
    )
    assert source.clips("train")[0] == 0


def test_songs_and_their_codes_are_split_alike_by_key() -> None:
    keys = np.array([f"song-{i}" for i in range(4000)], dtype="S48")
    held = split(keys, 0.1)
    assert 300 < held.sum() < 500
    assert np.array_equal(split(keys[::-1], 0.1), held[::-1])
    assert not (split(keys, 0.05) & ~held).any(), (
        "a smaller share holds out songs of the larger one"
    )
    assert not split(keys, 0.0).any()
    assert split(keys, 1.0).all()


def test_stereo_clips_keep_left_and_right_and_exchange_them_for_half_the_draws(songs: Path) -> None:
    source = SongClips(ShardSet(songs), CLIP, channels=2)
    mono = SongClips(ShardSet(songs), CLIP)
    assert source.facts()["channels"] == 2 and "channels" not in mono.facts()
    held = source.read(7, 2, None)["audio"]
    assert held.shape == (CLIP, 2) and held.dtype == np.float32
    assert held[-1, 0] > held[0, 0] and held[-1, 1] < held[0, 1]  # left counts up, right down
    np.testing.assert_allclose(held.mean(axis=1), mono.read(7, 2, None)["audio"][:, 0], atol=1e-6)
    rising = []
    for seed in range(60):
        x = source.read(7, 2, np.random.default_rng(seed))["audio"]
        rising.append(x[-1, 0] > x[0, 0])
        assert (x[-1, 1] > x[0, 1]) != rising[-1]
    assert 15 < sum(rising) < 45
