"""Originals and reconstructions beside samples: of held-out songs, and of what a song was made from."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import environment
from fixtures.tiny_jukebox import HOPS, write_runs
from fixtures.tiny_shards import write_songs

from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.song_dataset import split
from megajukebox.evaluation.inputs import samples_in
from megajukebox.explorer.loaders.samples import read_samples
from megajukebox.explorer.loaders.search_index import SampleLinks, entry
from megajukebox.explorer.pages.sample import command
from megajukebox.models.chunked_codec import decode_long
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.songs.reconstruction import reconstructions, select_rows
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.sampling.songs.song_writer import SongWriter

SHARE = 0.5  # of the little songs that the run says it held out


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet(write_songs(tmp_path_factory.mktemp("set") / "songs"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shards: ShardSet) -> Path:
    folder = write_runs(
        tmp_path_factory.mktemp("jukebox") / "runs", sample_rate=shards.index["sample_rate"]
    )
    holding_out(folder / "vqvae", "vqvae", SHARE)
    return folder


def sound(folder: Path, name: str) -> np.ndarray:
    return soundfile.read(folder / name, dtype="float32")[0]


def test_the_songs_are_those_that_the_run_held_out_or_those_named(
    shards: ShardSet, runs: Path
) -> None:
    held_out = set(np.flatnonzero(split(shards.songs["key"], SHARE)).tolist())
    assert 1 < len(held_out) < len(shards)
    assert set(select_rows(shards, runs / "vqvae", [], 1000)) == held_out
    assert len(few := select_rows(shards, runs / "vqvae", [], 2)) == 2 and set(few) < held_out
    assert select_rows(shards, runs / "vqvae", [shards.key(3), shards.key(1)], 1000) == [3, 1]
    with pytest.raises(ValueError, match="no song 'none'"):
        select_rows(shards, runs / "vqvae", ["none"], 1)
    with pytest.raises(ValueError, match="was held out"):
        select_rows(shards, holding_out(runs / "top_prior", "top_prior", 0.0), [], 1)


def holding_out(run: Path, stage: str, share: float) -> Path:
    """The run, with settings that say so."""
    told = {"stage": stage, "preset": {"training": {stage: {"held_out": share}}}}
    (run / "run.yaml").write_text(json.dumps(told))  # JSON is YAML
    return run


def test_a_reconstruction_is_the_song_through_each_levels_codes_beside_the_original(
    shards: ShardSet, runs: Path, tmp_path: Path
) -> None:
    (song,) = reconstructions(runs, shards, [2], 1.5, "cpu")
    path, vqvae = song.save(tmp_path), Jukebox(runs, "cpu").vqvae
    record = json.loads(path.read_text())
    original = sound(tmp_path, record["levels"]["original"]["audio"])
    assert (
        len(original) == round(record["seconds"] * shards.index["sample_rate"])
        and np.abs(original).max() > 0
    )
    with np.load(path.with_name(f"{path.stem}.codes.npz")) as codes:
        for level in HOPS:
            again = (
                decode_long(vqvae, torch.from_numpy(codes[level].astype(int)), level)
                .clamp(-1, 1)
                .numpy()
            )
            heard = sound(tmp_path, record["levels"][level]["audio"])
            assert len(heard) == len(original)
            np.testing.assert_allclose(heard[: len(again)], again, atol=1e-4)


@pytest.mark.parametrize(
    "verb",
    [["megajukebox.commands.reconstruct", "--data"], ["megajukebox.sample", "--reconstruct"]],
    ids=["today", "version 0.1"],
)
def test_the_entry_writes_songs_that_the_explorer_shows_and_the_score_leaves_out(
    shards: ShardSet, runs: Path, tmp_path: Path, verb: list[str]
) -> None:
    out = tmp_path / "samples"
    asked = [
        str(runs),
        verb[1],
        str(shards.folder),
        "--count",
        "2",
        "--seconds",
        "1",
        "--out",
        str(out),
    ]
    command_ = [sys.executable, "-m", verb[0], *asked]
    done = subprocess.run(command_, capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 2 == len(list(out.glob("*.json")))
    samples, problems = read_samples([out])
    assert not problems and all(set(sample.audio) == {*HOPS, "original"} for sample in samples)
    links = SampleLinks(
        "page", {track: path.name for track, path in samples[0].audio.items()}, {}, {}
    )
    told = entry(samples[0], links)
    assert (told["mode"], told.get("sampler"), told["checkpoint"]) == (
        "reconstruct",
        None,
        "step 1",
    )
    assert f"reconstruct {runs} --data {shards.source} --song" in command(samples[0])
    with pytest.raises(ValueError, match="no samples"):
        samples_in(out)


def test_codes_of_a_real_song_can_be_upsampled_anew(
    shards: ShardSet, runs: Path, tmp_path: Path
) -> None:
    (song,) = reconstructions(runs, shards, [2], 1.0, "cpu")
    path = song.save(tmp_path)
    (made,) = Jukebox(runs, "cpu").sample([SongRequest(id="again", upsample=str(path), seed=4)])
    np.testing.assert_array_equal(made.codes["top"], song.codes["top"])
    assert not np.array_equal(made.codes["bottom"], song.codes["bottom"])


def test_a_song_made_from_a_recording_has_it_and_what_its_codes_keep_beside_it(
    runs: Path, tmp_path: Path
) -> None:
    jukebox = Jukebox(runs, "cpu")
    rate = jukebox.vqvae.config.sample_rate
    wave = np.random.default_rng(1).uniform(-0.5, 0.5, 4 * rate).astype(np.float32)
    soundfile.write(tmp_path / "recorded.wav", wave, rate, subtype="FLOAT")
    prompt = {"prompt": str(tmp_path / "recorded.wav"), "keep_seconds": 0.5, "seconds": 1.0}
    (song,) = jukebox.sample(
        [SongRequest(id="primed", **prompt)], sink=SongWriter(jukebox, tmp_path)
    )
    record = json.loads((tmp_path / "primed.json").read_text())
    original = sound(tmp_path, record["levels"]["original"]["audio"])
    assert len(original) == song.samples
    np.testing.assert_allclose(original, wave[: song.samples], atol=1e-4)
    heard = sound(tmp_path, record["levels"]["reconstruction"]["audio"])
    again = jukebox.start_song(SongRequest(id="x", **prompt)).audio["reconstruction"]
    np.testing.assert_allclose(heard, again, atol=1e-4)
    assert len(heard) == song.samples and not np.array_equal(heard, sound(tmp_path, "primed.wav"))
    longer = jukebox.start_song(SongRequest(id="x", **prompt | {"seconds": 5.0}))
    assert {len(track) for track in longer.audio.values()} == {longer.samples}, (
        "pictures of one width, of one time"
    )
    np.testing.assert_array_equal(longer.audio["original"][4 * rate :], 0)


def test_a_mended_sample_stands_beside_what_it_was(runs: Path, tmp_path: Path) -> None:
    jukebox = Jukebox(runs, "cpu")
    first = SongRequest(id="first", seconds=1.0, seed=3)
    jukebox.sample([first], sink=SongWriter(jukebox, tmp_path))
    mended = SongRequest(
        id="mended", infill=str(tmp_path / "first.json"), replace=[[0.3, 0.6]], seed=4
    )
    jukebox.sample([mended], sink=SongWriter(jukebox, tmp_path))
    assert "original" not in json.loads((tmp_path / "mended.json").read_text())["levels"]
    before, beside = sound(tmp_path, "first.wav"), sound(tmp_path, "mended.reconstruction.wav")
    np.testing.assert_allclose(beside, before[: len(beside)], atol=1e-3)
