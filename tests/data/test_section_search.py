"""What sounds again is found by its chords, at the right place; kept over restarts; taken into code shards."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from megajukebox.commands.prepare import main as prepare
from megajukebox.commands.sections import main as find_sections
from megajukebox.common.errors import UserError
from megajukebox.conditioning.song_sections import SectionReturn
from megajukebox.data.section_search import ReturnCounts, compare_returns
from megajukebox.data.self_similarity import earlier_places, similar_returns, song_chroma
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.spectra import CHROMA_STEP_SECONDS

RATE = 11025
STEP = CHROMA_STEP_SECONDS


def tune(seed: int, seconds: float) -> np.ndarray:
    """Three notes at a time, others every 0.4 s."""
    rng = np.random.default_rng(seed)
    chords = []
    for _ in range(round(seconds / 0.4)):
        time = np.arange(round(0.4 * RATE)) / RATE
        hertz = 220 * 2 ** (rng.choice(12, 3, replace=False) / 12)
        chords.append(np.sin(2 * np.pi * hertz[:, None] * time).sum(axis=0) / 6)
    return np.concatenate(chords).astype(np.float32)


@pytest.fixture(scope="module")
def song() -> np.ndarray:
    """Verse, chorus, verse, chorus; 6 and 8 s, the second verse another one."""
    chorus = tune(2, 8)
    return np.concatenate([tune(1, 6), chorus, tune(3, 6), chorus])


def test_a_chorus_is_found_where_it_was(song: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    noisy = song + rng.normal(0, 0.01, len(song)).astype(np.float32)
    (found,) = similar_returns(song_chroma(noisy, RATE))
    assert found.start - found.earlier == pytest.approx(14, abs=0.1)
    assert found.start == pytest.approx(20, abs=1.0) and found.end == pytest.approx(28, abs=1.0)
    assert similar_returns(song_chroma(song[: 20 * RATE], RATE)) == [], "nothing came back yet"
    assert similar_returns(song_chroma(song[: RATE // 2], RATE)) == [], "too short for anything"


def test_places_are_those_of_a_slow_loop() -> None:
    rng = np.random.default_rng(1)
    features = rng.random((120, 12))
    features[80:115] = features[20:55]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity, lag = earlier_places(features)
    for frame in range(0, 120, 7):
        best, place = -1.0, 0
        for earlier in range(33, frame + 1):  # 3 s
            if frame + 30 <= 120:
                mean = np.mean([unit[frame + n] @ unit[frame + n - earlier] for n in range(30)])
                if mean > best + 1e-7:
                    best, place = mean, earlier
        assert similarity[frame] == pytest.approx(best, abs=1e-5) and lag[frame] == place
    assert lag[82] == 60 and similarity[82] == pytest.approx(1, abs=1e-5)


def test_blocks_of_a_long_song_give_the_frames_of_one_piece(
    song: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = song_chroma(song, RATE)
    monkeypatch.setattr("megajukebox.data.self_similarity.BLOCK_FRAMES", 100)
    pieces = song_chroma(song, RATE)
    assert abs(len(pieces) - len(whole)) <= 12, "less than a second at the end may miss"
    likeness = (whole[: len(pieces)] * pieces[: len(whole)]).sum(axis=1)
    sizes = np.linalg.norm(whole[: len(pieces)], axis=1) * np.linalg.norm(
        pieces[: len(whole)], axis=1
    )
    assert np.median(likeness / sizes) > 0.999


def test_counts_tell_found_from_right_and_from_false() -> None:
    known = [SectionReturn(10, 20, 0), SectionReturn(30, 40, 10)]
    starts = [0.0, 10.0, 20.0, 30.0]

    def seconds(found: list[SectionReturn]) -> list[int]:
        counts = compare_returns(found, known, starts, 40.0)
        return [round(count * STEP) for count in counts]

    assert seconds(known) == [20, 20, 20, 20, 0]
    assert seconds([]) == [20, 0, 0, 20, 0]
    assert seconds([SectionReturn(30, 40, 0)]) == [20, 10, 10, 20, 0], "the first one counts too"
    assert seconds([SectionReturn(30, 40, 5)]) == [20, 10, 0, 20, 0]
    assert seconds([SectionReturn(20, 30, 5)]) == [20, 0, 0, 20, 10]
    assert "100.0% of what returns is found" in ReturnCounts(1, 1, 1, 1, 0).report()


@pytest.fixture
def shards(tmp_path: Path, song: np.ndarray) -> Path:
    """Two songs, a shard each; the sections of the second one are known."""
    folder = tmp_path / "songs"
    folder.mkdir()
    soundfile.write(folder / "a.wav", song, RATE)
    soundfile.write(folder / "b.wav", song * 0.9, RATE)
    (folder / "b.sections.txt").write_text("0 verse\n6 chorus\n14 bridge\n20 chorus\n")
    out = tmp_path / "shards"
    prepare(
        str(folder),
        out,
        sample_rate=RATE,
        processes=1,
        lyrics_vocabulary=0,
        songs_per_shard=1,
    )
    return out


def test_what_is_found_goes_into_code_shards_and_a_restart_keeps_it(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fixtures.tiny_models import little_vqvae

    from megajukebox.common.model_files import save_weights
    from megajukebox.encode import main as encode

    vqvae = little_vqvae(codebook_size=32, sample_rate=RATE)
    save_weights(tmp_path / "vqvae", "vqvae", vqvae.config, vqvae.state_dict(), 1)
    encode(str(shards), tmp_path / "vqvae", tmp_path / "codes")
    before = ShardSet(tmp_path / "codes")
    assert "returns" not in before.read_facts(0)
    find_sections(shards, part="0/2", processes=1)
    find_sections(shards, processes=1)
    assert "1 shards searched, 1 kept" in capsys.readouterr().out
    file = shards / "songs-000000.returns.json"
    assert json.loads(file.read_text())["sha256"] == before_sha(shards)
    encode(str(shards), tmp_path / "vqvae", tmp_path / "codes")
    found, known = map(ShardSet(tmp_path / "codes").read_facts, range(2))
    ((start, _, earlier),) = found["returns"]
    assert start - earlier == pytest.approx(14, abs=0.1) and "sections" not in found
    assert known["returns"] == [[20.0, 28.0, 6.0]] and known["sections"][1]["kind"] == "chorus"
    find_sections(shards, check=True, processes=1)
    assert "1 songs with sections" in capsys.readouterr().out
    file.write_text('{"sha256": "x", "threshold": 1, "songs": {"a": [[1, 2, 3]]}}')
    with pytest.raises(UserError, match=r"is no return.*delete it and run megajukebox sections"):
        encode(str(shards), tmp_path / "vqvae", tmp_path / "codes")


def before_sha(shards: Path) -> str:
    return ShardSet(shards).index["shards"][0]["sha256"]


@pytest.mark.parametrize("part", ["2/2", "1", "-1/2", "a/b"])
def test_a_part_of_another_form_is_named(shards: Path, part: str) -> None:
    with pytest.raises(UserError, match="not of the form i/n"):
        find_sections(shards, part=part)
