"""Songs in, songs out: what `make demo` does, at miniature size, on two ranks of the deepspeed launcher."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import demo, environment

from megajukebox.common.model_files import check_fingerprint, read_facts
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.records.jsonl_tail import read_lines
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.songs.requests import SongRequest

STAGES = ("vqvae", "top_prior", "middle_upsampler", "bottom_upsampler")
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("pipeline"),
]  # one worker trains it once


def run(*command: str, expect: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, *command], env=environment(), capture_output=True, text=True, timeout=500
    )
    assert done.returncode == expect, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def test_every_stage_trains_on_two_ranks_and_leaves_its_run(pipeline):
    for stage in STAGES:
        folder = pipeline / "runs" / stage
        events = [e["event"] for e in read_lines(folder / "events.jsonl")]
        assert events[0] == "start" and events[-1] == "done"
        assert yaml.safe_load((folder / "run.yaml").read_text())["stage"] == stage
        check_fingerprint(folder)
        losses = [m["loss"] for m in read_lines(folder / "metrics.jsonl")]
        assert np.isfinite(losses).all()


def test_the_priors_are_really_split_over_ranks_by_zero_3(pipeline):
    state = next((pipeline / "runs/top_prior/checkpoints").glob("step-*/state"))
    assert len(list(state.glob("*zero_pp_rank_*optim_states.pt"))) == 2


def test_code_shards_hold_every_song_at_every_level(pipeline):
    songs, codes = ShardSet(pipeline / "shards/songs"), ShardSet(pipeline / "shards/codes")
    assert len(songs) == len(codes) == 9
    assert codes.index["vqvae"]["fingerprint"] == read_facts(pipeline / "runs/vqvae")["fingerprint"]
    for level, hop in {"top": 128, "middle": 32, "bottom": 8}.items():
        with codes.open_member(0, level) as file:
            stored = np.load(file)
        assert (
            stored.dtype == np.uint16
            and len(stored) == int(codes.songs["frames"][0]) // 128 * 128 // hop
        )


def test_the_samples_have_audio_at_every_level_and_say_what_made_them(pipeline):
    for number in range(3):
        record = json.loads((pipeline / f"samples/song-{number:02d}.json").read_text())
        assert set(record["levels"]) == {"top", "middle", "bottom"} and record["weights"]["vqvae"]
        for level in record["levels"].values():
            wave, rate = soundfile.read(pipeline / "samples" / level["audio"])
            assert rate == 8000 and len(wave) == round(8000 / 128) * 128 and np.abs(wave).max() <= 1
        with np.load(
            pipeline / f"samples/song-{number:02d}.codes.npz", allow_pickle=False
        ) as codes:
            assert {name: len(codes[name]) for name in codes} == {
                "top": 62,
                "middle": 248,
                "bottom": 992,
            }


def test_the_page_shows_every_sample_and_every_run(pipeline):
    pages = "".join(page.read_text() for page in (pipeline / "site").rglob("*.html"))
    for name in ("song-00", "song-01", "song-02", *STAGES):
        assert name in pages
    assert str((pipeline / "site/index.html").resolve()) in (
        pipeline / "stdout.txt"
    ).read_text().replace("\n", "")


def test_a_second_start_repeats_no_finished_stage(pipeline):
    before = {p: p.stat().st_mtime_ns for p in (pipeline / "runs").rglob("model.safetensors")}
    printed = run(*demo(pipeline))
    assert printed.count("is done") == 6
    assert before == {
        p: p.stat().st_mtime_ns for p in (pipeline / "runs").rglob("model.safetensors")
    }


def test_a_song_does_not_depend_on_ranks_or_batch_mates(pipeline):
    record = json.loads((pipeline / "samples/song-01.json").read_text())
    alone = Jukebox(pipeline / "runs").sample([SongRequest(**record["request"])])[0]
    with np.load(pipeline / "samples/song-01.codes.npz", allow_pickle=False) as codes:
        for level, stored in codes.items():
            np.testing.assert_array_equal(alone.codes[level], stored)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_priors_sample_in_half_precision(pipeline, dtype):
    song = Jukebox(pipeline / "runs", dtype=dtype).sample(
        [SongRequest(id="half", seconds=0.5, seed=3)]
    )[0]
    assert {level: len(codes) for level, codes in song.codes.items()} == {
        "top": 31,
        "middle": 124,
        "bottom": 496,
    }
    assert all(codes.max() < 32 and len(set(codes)) > 1 for codes in song.codes.values())
    assert song.record()["precision"] == str(dtype).removeprefix("torch.")


def test_bad_requests_are_named_and_the_others_are_made(pipeline, tmp_path):
    asked = [
        {"id": "good", "seconds": 0.5, "artist": "nobody at all"},
        {"id": "bad", "seconds": -1},
    ]
    (tmp_path / "requests.yaml").write_text(yaml.safe_dump(asked))
    arguments = [
        str(pipeline / "runs"),
        "--requests",
        str(tmp_path / "requests.yaml"),
        "--out",
        str(tmp_path),
    ]
    printed = run("-m", "megajukebox.sample", *arguments, expect=1)
    assert "request bad: seconds" in printed
    notes = json.loads((tmp_path / "good.json").read_text())["notes"]
    assert any("nobody at all" in note for note in notes) and any(
        "no lyrics" in note for note in notes
    )


def test_a_prior_refuses_the_codes_of_another_vqvae(pipeline, tmp_path):
    for stage in STAGES:
        (tmp_path / stage).symlink_to(pipeline / "runs" / stage)
    facts = json.loads((pipeline / "runs/vqvae/model.json").read_text())
    (tmp_path / "vqvae").unlink()
    (tmp_path / "vqvae").mkdir()
    (tmp_path / "vqvae/model.safetensors").symlink_to(pipeline / "runs/vqvae/model.safetensors")
    (tmp_path / "vqvae/model.json").write_text(json.dumps(facts | {"fingerprint": "0" * 64}))
    with pytest.raises(ValueError, match="codes of another VQ-VAE"):
        Jukebox(tmp_path)


def test_encoding_does_not_depend_on_the_split(pipeline, tmp_path):
    songs, vqvae, out = pipeline / "shards/songs", pipeline / "runs/vqvae", tmp_path / "codes"
    arguments = [str(songs), "--vqvae", str(vqvae), "--out", str(out)]
    run("-m", "megajukebox.encode", *arguments, "--part", "1/2")
    assert not (tmp_path / "codes/index.json").exists()
    run("-m", "megajukebox.encode", *arguments)
    for tar in (pipeline / "shards/codes").glob("*.tar"):
        assert tar.read_bytes() == (tmp_path / "codes" / tar.name).read_bytes()
    assert (
        ShardSet(tmp_path / "codes").fingerprint == ShardSet(pipeline / "shards/codes").fingerprint
    )
