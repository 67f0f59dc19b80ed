"""Modes: from nothing, after a prompt, longer, upsampled, mended, re-sung; variations; and what cannot be made."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fixtures.tiny_jukebox import HOPS, write_runs

from megajukebox.models.chunked_codec import reach
from megajukebox.sampling.jukebox import DecodingPolicy, Jukebox
from megajukebox.sampling.songs.requests import SongRequest, parse_requests, read_requests
from megajukebox.sampling.songs.song import GeneratedSong
from megajukebox.sampling.songs.song_writer import SongWriter

HOT = {"temperature": 3.0, "artist": "ilune"}  # so hot that two seeds never agree by chance


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("jukebox") / "runs")


@pytest.fixture(scope="module")
def box(runs: Path) -> Jukebox:
    return Jukebox(runs)


@pytest.fixture(scope="module")
def earlier(box: Jukebox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample of 8 top codes in its folder."""
    out = tmp_path_factory.mktemp("samples")
    first = SongRequest(id="first", seconds=1.024, seed=3, lyrics="la la", **HOT)
    box.sample([first], sink=SongWriter(box, out))
    return out / "first.json"


def codes(path: Path) -> dict[str, np.ndarray]:
    with np.load(path.with_name(path.name.replace(".json", ".codes.npz"))) as stored:
        return {level: stored[level].astype(int) for level in stored.files}


def made(box: Jukebox, **asked) -> GeneratedSong:
    return box.sample([SongRequest(id="song", **{"seed": 8, **HOT, **asked})])[0]


def test_a_sample_goes_on_longer_from_all_its_levels(box: Jukebox, earlier: Path) -> None:
    song, before = made(box, prompt=str(earlier), seconds=1.536), codes(earlier)
    for level, hop in HOPS.items():
        assert len(song.codes[level]) == 1536 // hop
        np.testing.assert_array_equal(song.codes[level][: len(before[level])], before[level])
        assert len(set(song.codes[level][len(before[level]) :])) > 1


def test_a_recording_is_gone_on_from(box: Jukebox, tmp_path: Path) -> None:
    wave = np.random.default_rng(1).uniform(-0.5, 0.5, 4800).astype(np.float32)
    soundfile.write(
        tmp_path / "recorded.wav", np.stack([wave, -wave / 2], 1), 4000, subtype="FLOAT"
    )
    song = made(box, prompt=str(tmp_path / "recorded.wav"), keep_seconds=0.5, seconds=1.024)
    whole = box.start_song(
        SongRequest(id="x", prompt=str(tmp_path / "recorded.wav"), seconds=2.0, **HOT)
    )
    for level, hop in HOPS.items():
        kept = 512 // hop  # 0.5 s are rounded to 4 top codes
        np.testing.assert_array_equal(song.codes[level][:kept], whole.known.codes[level][:kept])
        assert song.known.mask[level].sum() == kept


def test_upsampling_keeps_the_levels_above(box: Jukebox, earlier: Path) -> None:
    before = codes(earlier)
    song, again = (
        made(box, upsample=str(earlier)),
        made(box, upsample=str(earlier), upsample_from="middle"),
    )
    np.testing.assert_array_equal(song.codes["top"], before["top"])
    assert not np.array_equal(song.codes["middle"], before["middle"])
    np.testing.assert_array_equal(again.codes["middle"], before["middle"])
    assert song.samples == 1024 and song.request.seconds == pytest.approx(1.024)


@pytest.mark.parametrize(
    "engine",
    [DecodingPolicy(), DecodingPolicy(exact=False), DecodingPolicy(decoding="jacobi")],
    ids=str,
)
def test_outside_a_mended_range_nothing_changes_in_codes_nor_beyond_reach_in_audio(
    runs: Path, earlier: Path, engine: DecodingPolicy
) -> None:
    box, before = Jukebox(runs, policy=engine), codes(earlier)
    song = made(box, infill=str(earlier), replace=[[0.3, 0.6]], lyrics="other words")
    old = made(
        box, infill=str(earlier), replace=[[1.0, 1.01]]
    )  # for its audio, decoded as the mended one's
    for level, hop in HOPS.items():
        inside = np.arange(1024 // hop) * hop // 128
        inside = (inside >= 2) & (inside < 5)  # 0.3 .. 0.6 s lie in top codes 2 to 4
        np.testing.assert_array_equal(song.codes[level][~inside], before[level][~inside])
        assert not np.array_equal(song.codes[level][inside], before[level][inside])
        far = hop * reach(box.vqvae.level(level).decoder)
        first, last = max(0, 2 * 128 - far), min(7 * 128 - far, 5 * 128 + far)
        np.testing.assert_array_equal(song.audio[level][:first], old.audio[level][:first])
        np.testing.assert_array_equal(
            song.audio[level][last : 7 * 128 - far], old.audio[level][last : 7 * 128 - far]
        )


def test_lyrics_are_sung_anew_in_the_range_only(box: Jukebox, earlier: Path) -> None:
    asked = {"infill": str(earlier), "replace": [[0.2, 0.8]], "seed": 3, "temperature": 0.1}
    same, other = made(box, **asked, lyrics="la la"), made(box, **asked, lyrics="zu zu zu zu")
    assert not np.array_equal(same.codes["top"], other.codes["top"])
    np.testing.assert_array_equal(same.codes["top"][7:], other.codes["top"][7:])


def test_variations_are_songs_of_their_own_with_one_prompt(box: Jukebox, earlier: Path) -> None:
    asked = {"id": "v", "prompt": str(earlier), "seconds": 1.536, "variations": 3, "seed": 5, **HOT}
    good, wrong = parse_requests([asked])
    assert (
        [r.id for r in good] == ["v-1", "v-2", "v-3"]
        and [r.seed for r in good] == [5, 6, 7]
        and not wrong
    )
    songs = box.sample(good)
    alone = box.sample(good[2:])[0]
    for level in HOPS:
        np.testing.assert_array_equal(alone.codes[level], songs[2].codes[level])
        assert not np.array_equal(songs[0].codes[level], songs[1].codes[level])


def test_hop_fractions_are_the_request_s(box: Jukebox) -> None:
    usual, same, other = (
        made(box, seconds=1.024, hop_fraction=h) for h in ({}, {"bottom": 0.5}, {"bottom": 0.25})
    )
    np.testing.assert_array_equal(usual.codes["bottom"], same.codes["bottom"])
    np.testing.assert_array_equal(usual.codes["middle"], other.codes["middle"])
    assert not np.array_equal(usual.codes["bottom"], other.codes["bottom"])


CANNOT = [
    ({"prompt": "nowhere.wav"}, "'nowhere.wav' is missing"),
    ({"prompt": "{sample}", "seconds": 0.5}, "lasts 1.02 s, the song 0.5 s"),
    ({"infill": "{sample}", "replace": [[5, 6]]}, "ends"),
    ({"prompt": "{text}"}, "cannot be read as audio"),
    ({"upsample": "{other}"}, "codes of another VQ-VAE"),
    ({"infill": "{top_only}", "replace": [[0, 0.5]]}, "holds no"),
    ({"prompt": "{lonely}"}, "needs both"),
]


@pytest.mark.parametrize(("asked", "named"), CANNOT, ids=lambda x: str(x)[:30])
def test_what_cannot_be_made_is_one_clear_line(
    box: Jukebox, earlier: Path, tmp_path: Path, asked: dict, named: str
) -> None:
    record = json.loads(earlier.read_text())
    arrays = earlier.with_name("first.codes.npz").read_bytes()
    (tmp_path / "text.wav").write_text("this is no audio at all")
    (tmp_path / "other.json").write_text(json.dumps(record | {"weights": {"vqvae": "0" * 64}}))
    (tmp_path / "other.codes.npz").write_bytes(arrays)
    (tmp_path / "top_only.json").write_text(json.dumps(record))
    np.savez(tmp_path / "top_only.codes.npz", top=codes(earlier)["top"].astype(np.uint16))
    (tmp_path / "lonely.json").write_text(json.dumps(record))
    files = {name: str(tmp_path / f"{name}.json") for name in ("other", "top_only", "lonely")}
    files |= {"sample": str(earlier), "text": str(tmp_path / "text.wav")}
    filled = {k: v.format(**files) if isinstance(v, str) else v for k, v in asked.items()}
    with pytest.raises(ValueError, match=named) as error:
        box.start_song(SongRequest(id="bad", **filled))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"prompt": "a", "infill": "b", "replace": [[0, 1]]}, "choose one"),
        ({"infill": "a"}, "go together"),
        ({"replace": [[0, 1]]}, "go together"),
        ({"infill": "a", "replace": [[2, 1]]}, "start < end"),
        ({"keep_seconds": 3}, "give the prompt"),
        ({"variations": 0}, "variations"),
        ({"upsample": "a", "upsample_from": "bottom"}, "upsample_from"),
        ({"hop_fraction": 0}, "hop_fraction"),
    ],
)
def test_settings_that_contradict_each_other_are_named(asked: dict, named: str) -> None:
    good, wrong = parse_requests([{"id": "bad", **asked}, {"id": "good"}])
    assert [r.id for r in good] == ["good"] and len(wrong) == 1 and named in wrong[0]


def test_files_beside_the_requests_are_found(tmp_path: Path) -> None:
    (tmp_path / "hum.wav").touch()
    (tmp_path / "songs.yaml").write_text(
        "- {id: a, prompt: hum.wav}\n- {id: b, prompt: elsewhere.wav}"
    )
    good, _ = read_requests(tmp_path / "songs.yaml")
    assert [r.prompt for r in good] == [str(tmp_path / "hum.wav"), "elsewhere.wav"]
