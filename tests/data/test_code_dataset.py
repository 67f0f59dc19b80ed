"""Windows of codes: upper codes line up, conditions and lyrics are those of the song, broken codes are refused."""

import io
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.tiny_shards import (
    HOPS,
    PLACES,
    WINDOW,
    batches,
    npy,
    write_codes,
)

from megajukebox.conditioning.lyric_windows import linear_centre, lyric_window
from megajukebox.conditioning.schema import LabelCondition, LyricsCondition, TimingCondition
from megajukebox.conditioning.tokenizers import JukeboxCharacters
from megajukebox.conditioning.vocabulary import Vocabulary
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.code_dataset import (
    CodeWindows,
    read_codes,
)


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_codes(tmp_path_factory.mktemp("sets") / "codes")


@pytest.mark.parametrize(("level", "upper"), [("middle", "top"), ("bottom", "middle")])
def test_upper_codes_are_those_of_the_same_audio(codes: Path, level: str, upper: str) -> None:
    source = CodeWindows(ShardSet(codes), level, WINDOW[level])
    starts = set()
    for step in islice(iter(batches(source, micro_batch=4)), 20):
        for batch in step:
            ratio = HOPS[upper] // HOPS[level]
            assert batch["codes"].dtype == batch["upper_codes"].dtype == torch.int64
            assert batch["codes"].shape == (4, WINDOW[level])
            # every code tells its top code, so they agree wherever they lie over each other
            assert torch.equal(batch["codes"], batch["upper_codes"].repeat_interleave(ratio, dim=1))
            offset = batch["timing"][:, 1]
            assert torch.equal(batch["codes"][:, 0] % PLACES, offset // HOPS["top"])
            assert (offset % HOPS[upper] == 0).all()
            starts |= set((offset // HOPS[upper] % (WINDOW[level] // ratio)).tolist())
    assert len(starts) > 1, "windows are shifted"


def test_timing_is_in_audio_samples_and_windows_end_inside_the_song(codes: Path) -> None:
    source = CodeWindows(ShardSet(codes), "top", 8)
    for step in islice(iter(batches(source, micro_batch=8)), 12):
        song = step[0]["codes"][:, 0] // PLACES
        length, offset, clip = step[0]["timing"].T
        assert "upper_codes" not in step[0]
        assert torch.equal(length, 3000 + 517 * song)
        assert (clip == 8 * 128).all()
        assert (offset >= 0).all() and (offset + clip <= length).all()


def test_conditions_are_ids_with_unknown_names_and_empty_slots(codes: Path) -> None:
    conditions = (
        LabelCondition("artist", Vocabulary.build({"artist 1": 3, "ARTIST 3": 5})),
        LabelCondition("genres", Vocabulary.build({"pop": 9, "rock": 10}), max_values=3),
        LabelCondition("moods", Vocabulary.build({"sad": 1}), max_values=2),
        TimingCondition(),
    )
    source = CodeWindows(ShardSet(codes), "top", 8, conditions=conditions)
    artists = {
        song: source.read(song, 0, None)["conditions"]["artist"].tolist() for song in range(4)
    }
    assert artists == {0: [0], 1: [2], 2: [0], 3: [1]}
    assert source.read(1, 0, None)["conditions"]["genres"].tolist() == [2, -1, -1]
    assert source.read(1, 0, None)["conditions"]["moods"].tolist() == [-1, -1]
    batch = next(iter(batches(source, micro_batch=4)))[0]
    assert batch["conditions"]["genres"].shape == (4, 3)


def test_dropout_hides_each_condition_at_its_own_rate_and_never_from_held_out_songs(
    codes: Path,
) -> None:
    conditions = (
        LabelCondition("artist", Vocabulary.build({"artist 1": 1}), dropout=0.25),
        LabelCondition("genres", Vocabulary.build({"pop": 1}), max_values=2, dropout=0.75),
        LyricsCondition(JukeboxCharacters("v2"), 4, dropout=0.5),
    )
    source = CodeWindows(ShardSet(codes), "top", 8, conditions=conditions)
    read = [source.read(1, 0, np.random.default_rng(seed)) for seed in range(400)]
    assert 60 < sum(x["conditions"]["artist"].tolist() == [0] for x in read) < 140
    assert 260 < sum(x["conditions"]["genres"].tolist() == [-1, -1] for x in read) < 340
    assert 150 < sum(x["lyrics"].tolist() == [0] * 4 for x in read) < 250
    assert source.read(1, 0, None)["conditions"]["artist"].tolist() == [1]


def test_lyrics_are_the_window_that_is_sung(codes: Path) -> None:
    tokenizer = JukeboxCharacters("v2")
    conditions = (TimingCondition(), LyricsCondition(tokenizer, 6))
    source = CodeWindows(ShardSet(codes), "top", 8, conditions=conditions)
    assert source.read(0, 0, None)["lyrics"].tolist() == [0] * 6, "without lyrics: padding"
    sample = source.read(5, 3, None)
    song, offset, clip = sample["timing"].tolist()
    ids = tokenizer.encode("la " * 50).ids
    assert (
        sample["lyrics"].tolist()
        == lyric_window(ids, linear_centre(150, song, offset, clip), 6).ids.tolist()
    )
    # middle of window 2 of song 1: 2560 samples = 0.232 s, two thirds through "second" (0.1 to 0.3 s)
    timed = source.read(1, 2, None)
    assert tokenizer.decode(timed["lyrics"].tolist()) == "second"


def test_a_window_that_would_cut_an_upper_code_is_refused_with_the_way_out(codes: Path) -> None:
    with pytest.raises(
        ValueError, match=r"window 10 at level middle is not a multiple of 4.* set it to 8"
    ):
        CodeWindows(ShardSet(codes), "middle", 10)
    with pytest.raises(
        ValueError, match="level 'low' is not in the code set; choose one of top, middle, bottom"
    ):
        CodeWindows(ShardSet(codes), "low", 8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.arange(9, dtype=np.int64)), "not one row of uint16"),
        (npy(np.zeros((3, 3), dtype=np.uint16)), "not one row of uint16"),
        (npy(np.arange(9, dtype=np.uint16))[:-4], "codes end after 2 of 4"),
        (npy(np.arange(6, dtype=np.uint16)), "only 6 codes where 5 to 9 are wanted"),
        (b"RIFF" + bytes(200), "not as a .npy file"),
        (b"", "not as a .npy file"),
    ],
)
def test_what_is_not_a_row_of_codes_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_codes(io.BytesIO(data), 5, 4)


def test_codes_outside_the_codebook_are_bad_even_without_checksums(codes: Path) -> None:
    shards = ShardSet(codes)
    shards.index["vqvae"]["codes"]["top"] = 64
    source = CodeWindows(shards, "top", 8, verify=False)
    source.read(0, 0, None)
    with pytest.raises(ValueError, match="in top codes is outside its codebook of 64"):
        source.read(3, 0, None)
