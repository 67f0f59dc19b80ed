"""A refiner beside a jukebox: another recording of the same codes; without it everything is as it was."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from fixtures.tiny_jukebox import write_runs
from fixtures.tiny_shards import write_songs

from megajukebox.common.errors import UserError
from megajukebox.common.model_files import read_facts, save_weights
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.explorer.loaders.samples import read_samples
from megajukebox.explorer.loaders.search_index import finest
from megajukebox.models.refiner import Refiner
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.songs.reconstruction import reconstructions, reconstructor
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.sampling.songs.song_writer import SongWriter
from megajukebox.training.refiner_settings import RefinerSettings, refiner_config

REQUEST = SongRequest(id="mine", seconds=1.024, seed=3, artist="ilune")


def write_refiner(runs: Path, jukebox: Jukebox, level: str, noise: float, folder: str) -> Path:
    """A refiner whose last layer is random, of the size `noise`; 0 is a new one."""
    torch.manual_seed(0)
    settings = RefinerSettings(level=level, width=8, dilations=(1,))
    refiner = Refiner(refiner_config(settings, jukebox.vqvae.config))
    torch.nn.init.normal_(refiner.output.weight, std=noise)
    fingerprint = read_facts(runs / "vqvae")["fingerprint"]
    weights = refiner.state_dict()
    save_weights(runs / folder, "refiner", refiner.config, weights, 3, vqvae=fingerprint)
    return runs / folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write_runs(tmp_path / "runs")


def test_a_refiner_adds_a_recording_and_changes_no_other(runs: Path, tmp_path: Path) -> None:
    plain = Jukebox(runs, "cpu")
    before = plain.sample([REQUEST])[0]
    write_refiner(runs, plain, "bottom", 0.3, "refiner_bottom")
    write_refiner(runs, plain, "top", 0.0, "refiner_top")
    jukebox = Jukebox(runs, "cpu")
    assert set(jukebox.refiners) == {"bottom", "top"}
    assert jukebox.song_key(REQUEST) == plain.song_key(REQUEST)
    song = jukebox.sample([REQUEST])[0]
    for level in ("top", "middle", "bottom"):
        np.testing.assert_array_equal(song.codes[level], before.codes[level])
        np.testing.assert_array_equal(song.audio[level], before.audio[level])
    np.testing.assert_array_equal(song.audio["refined_top"], song.audio["top"])  # a new refiner
    assert not np.allclose(song.audio["refined_bottom"], song.audio["bottom"])
    assert Jukebox(runs, "cpu", refiners=()).refiners == {}

    out = tmp_path / "samples"
    jukebox.sample([REQUEST], sink=SongWriter(jukebox, out))
    record = json.loads((out / "mine.json").read_text())
    assert record["refiners"]["bottom"] == jukebox.refiners["bottom"].fingerprint
    refined, _ = soundfile.read(out / "mine.refined_bottom.wav", dtype="float32")
    np.testing.assert_allclose(refined, song.audio["refined_bottom"], atol=1e-4)
    (listed,), problems = read_samples([out])
    assert not problems and {"bottom", "refined_bottom", "refined_top"} <= set(listed.audio)
    assert finest({track: track for track in listed.audio}) == "refined_bottom"


def test_a_refiner_of_another_vqvae_is_refused_and_can_be_left_out(
    runs: Path, tmp_path: Path
) -> None:
    jukebox = Jukebox(runs, "cpu")
    folder = write_refiner(runs, jukebox, "bottom", 0.3, "refiner_bottom")
    facts = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**facts, "vqvae": "0" * 64}))
    with pytest.raises(UserError, match="refines another VQ-VAE"):
        Jukebox(runs, "cpu")
    assert Jukebox(runs, "cpu", refiners=()).refiners == {}
    mine = write_refiner(runs, jukebox, "bottom", 0.3, "mine")
    assert set(Jukebox(runs, "cpu", refiners=[mine]).refiners) == {"bottom"}
    with pytest.raises(UserError, match="is a second one of level bottom"):
        Jukebox(runs, "cpu", refiners=[mine, mine])


def test_reconstructions_have_decoder_and_refined_side_by_side(tmp_path: Path) -> None:
    shards = ShardSet(write_songs(tmp_path / "songs"))
    rate = shards.index["sample_rate"]
    runs = write_runs(tmp_path / "runs", sample_rate=rate)
    write_refiner(runs, Jukebox(runs, "cpu"), "middle", 0.3, "refiner_middle")
    (song,) = reconstructions(runs, shards, [2], 1.0, "cpu")
    assert len(song.audio["refined_middle"]) == len(song.audio["middle"]) == song.samples
    assert not np.allclose(song.audio["refined_middle"], song.audio["middle"])
    (plain,) = reconstructions(runs, shards, [2], 1.0, "cpu", refiner_runs=[])
    assert "refined_middle" not in plain.audio
    np.testing.assert_array_equal(plain.audio["middle"], song.audio["middle"])
    excerpt = song.audio["original"]
    waves = reconstructor(runs / "vqvae", rate)(excerpt, rate)
    np.testing.assert_allclose(waves["refined_middle"], song.audio["refined_middle"], atol=1e-6)
