"""Songs of a jukebox whose top has the target `spectrum`: streamed, prompted, mended, reconstructed, from the top alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from fixtures.tiny_jukebox import HOPS, write_runs
from fixtures.tiny_models import vqvae_config

from megajukebox.common.errors import UserError
from megajukebox.common.model_files import read_facts
from megajukebox.models.chunked_codec import decode_long
from megajukebox.sampling.jukebox import Jukebox, sampled_levels
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.sampling.songs.song import GeneratedSong
from megajukebox.sampling.songs.song_writer import SongWriter

SPECTRUM = {
    "window": 256,
    "output_window": 256,
    "width": 8,
    "code_width": 4,
    "codebook_size": 16,
    "phase": {"iterations": 3},
}
VQVAE = {"targets": {"top": "spectrum"}, "spectrum": SPECTRUM}
HOT = {"temperature": 3.0, "artist": "ilune"}  # so hot that two seeds never agree by chance


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("jukebox") / "runs", vqvae_settings=VQVAE)


@pytest.fixture(scope="module")
def box(runs: Path) -> Jukebox:
    return Jukebox(runs, levels=["all"])


def made(box: Jukebox, **asked) -> GeneratedSong:
    return box.sample([SongRequest(id="song", **{"seed": 8, "seconds": 2.304, **HOT, **asked})])[0]


def test_the_target_is_kept_in_the_files_of_the_run(runs: Path, box: Jukebox) -> None:
    assert read_facts(runs / "vqvae")["config"]["targets"] == {"top": "spectrum"}
    assert box.vqvae.config.spectrum_levels == ("top",)


def test_a_streamed_song_is_the_song_that_is_decoded_as_a_whole(
    box: Jukebox, tmp_path: Path
) -> None:
    """18 codes come one by one; pieces of 15 wait for the codes that their phases depend on."""
    request = SongRequest(id="song", seconds=2.304, seed=8, **HOT)
    box.sample([request], sink=SongWriter(box, tmp_path))
    streamed, _ = soundfile.read(tmp_path / "song.top.wav", dtype="float32")
    song = made(box)
    assert len(streamed) == 18 * HOPS["top"] and np.abs(streamed).max() > 0
    np.testing.assert_allclose(streamed, song.audio["top"], atol=1 / 32768)
    codes = torch.from_numpy(song.codes["top"])
    whole = decode_long(box.vqvae, codes, "top", 100.0).clamp(-1, 1)
    np.testing.assert_allclose(song.audio["top"], whole.numpy(), atol=1e-4)


def test_one_seed_is_one_song(box: Jukebox) -> None:
    short = {"seconds": 0.512}
    first, again, other = made(box, **short), made(box, **short), made(box, seed=9, **short)
    assert np.array_equal(first.audio["top"], again.audio["top"])
    assert not np.array_equal(first.codes["top"], other.codes["top"])


def test_a_recording_is_continued_and_mended(box: Jukebox, tmp_path: Path) -> None:
    wave = np.random.default_rng(1).uniform(-0.5, 0.5, 4096).astype(np.float32)
    soundfile.write(tmp_path / "recorded.wav", wave, 4000, subtype="FLOAT")
    path = str(tmp_path / "recorded.wav")
    longer = made(box, prompt=path, keep_seconds=0.512, seconds=0.768)
    recorded = box.start_song(SongRequest(id="x", prompt=path, seconds=3.0)).known.codes["top"]
    assert np.array_equal(longer.codes["top"][:4], recorded[:4])
    mended = made(box, infill=path, replace=[[0.3, 0.5]], seconds=1.024)
    kept = [0, 1, 4, 5, 6, 7]
    assert np.array_equal(mended.codes["top"][kept], recorded[kept])


# ---- From the top alone ---------------------------------------------------------------------------------------------


def test_a_spectrum_top_is_a_song_by_itself_unless_more_is_asked(
    runs: Path, tmp_path: Path
) -> None:
    top = Jukebox(runs)
    assert list(top.levels) == ["top"]
    assert list(Jukebox(runs, levels=["top", "middle"]).levels) == ["top", "middle"]
    request = SongRequest(id="song", seconds=0.512, seed=8, **HOT)
    top.sample([request], sink=SongWriter(top, tmp_path))
    assert sorted(path.name for path in tmp_path.glob("song*")) == [
        "song.codes.npz",
        "song.json",
        "song.wav",
    ]
    record = json.loads((tmp_path / "song.json").read_text())
    assert record["levels"]["top"]["audio"] == "song.wav"
    assert record["seconds"] == 0.512
    assert soundfile.info(tmp_path / "song.wav").frames == 512


def test_the_top_s_song_is_continued_and_mended_and_upsampled(
    runs: Path, box: Jukebox, tmp_path: Path
) -> None:
    top = Jukebox(runs)
    request = SongRequest(id="song", seconds=0.512, seed=8, **HOT)
    top.sample([request], sink=SongWriter(top, tmp_path))
    sample = str(tmp_path / "song.json")
    before = np.load(tmp_path / "song.codes.npz")["top"]
    longer = made(top, prompt=sample, seconds=0.768)
    assert np.array_equal(longer.codes["top"][:4], before)
    mended = made(top, infill=sample, replace=[[0.2, 0.3]], seconds=0.512)
    assert np.array_equal(mended.codes["top"][[0, 3]], before[[0, 3]])
    whole = made(box, upsample=sample, seconds=0.512)
    assert list(whole.audio) == ["top", "middle", "bottom"]
    assert np.array_equal(whole.codes["top"], before)


@pytest.mark.parametrize("levels", [["bottom"], ["top", "bottom"], ["treble"]])
def test_levels_that_cannot_be_sampled_are_refused_with_those_that_can(
    runs: Path, levels: list[str]
) -> None:
    with pytest.raises(UserError, match=r"give one of top, top,middle, top,middle,bottom, all"):
        Jukebox(runs, levels=levels)


def test_a_wave_top_is_sampled_with_its_upsamplers() -> None:
    assert sampled_levels(vqvae_config()) == ("top", "middle", "bottom")
    assert sampled_levels(vqvae_config(), ["top"]) == ("top",)
