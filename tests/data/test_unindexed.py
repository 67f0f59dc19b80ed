"""Plain streaming of tars without an index: clips come for ever, damage is skipped, a resume is statistical only."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.shard_server import serving
from fixtures.tiny_shards import CLIP, RATE, write_songs

from megajukebox.data.shards.remote import RemoteConfig
from megajukebox.data.stream.bad_samples import StorageUnavailable
from megajukebox.data.stream.unindexed import UnindexedBatches, UnindexedShards, held_out_batches
from megajukebox.data.stream.worker_pool import ReadAhead


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("sets") / "songs")


def stream(urls: object, **changed: Any) -> UnindexedBatches:
    piped = {name: changed.pop(name) for name in ("held_out", "buffer_bytes") if name in changed}
    piped["remote"] = RemoteConfig(allow_pipe=changed.pop("allow_pipe", False))
    settings = {"seed": 3, "global_batch": 8, "micro_batch": 4, **changed}
    return UnindexedBatches(UnindexedShards(str(urls), RATE, CLIP, **piped), **settings)


def steps(batches: UnindexedBatches, count: int) -> list[torch.Tensor]:
    return [torch.cat([batch["audio"] for batch in step]) for step in islice(batches, count)]


@pytest.mark.parametrize("workers", [0, 2])
def test_clips_of_tars_come_without_an_index(songs: Path, workers: int) -> None:
    read = steps(stream(songs / "songs-{000000..000002}.tar", ahead=ReadAhead(workers)), 10)
    assert len(read) == 10 and all(
        step.shape == (8, CLIP, 1) and step.isfinite().all() for step in read
    )
    assert len({float(clip[0]) for step in read for clip in step}) > 40


def test_ranks_read_clips_of_their_own_and_a_seed_repeats_them(songs: Path) -> None:
    urls = songs / "songs-{000000..000002}.tar"
    first, again, other = (steps(stream(urls, world=2, rank=rank), 4) for rank in (0, 0, 1))
    assert all(map(torch.equal, first, again)) and not any(map(torch.equal, first, other))


def test_http_and_commands_are_read_as_they_come(songs: Path) -> None:
    with serving(songs) as server:
        assert len(steps(stream(f"{server.url}/songs-{{000000..000002}}.tar"), 3)) == 3
    command = f"pipe:cat {songs}/songs-{{000000..000002}}.tar"
    with pytest.raises(ValueError, match="would run a command; give --allow-pipe"):
        stream(command)
    assert len(steps(stream(command, allow_pipe=True), 3)) == 3


def test_broken_tars_are_skipped_and_named(songs: Path, tmp_path: Path) -> None:
    for shard in songs.glob("*.tar"):
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    cut = tmp_path / "songs-000001.tar"
    cut.write_bytes(cut.read_bytes()[:50_000])
    (tmp_path / "songs-000002.tar").write_bytes(b"\x00\xff" * 5000)
    named: set[str] = set()
    batches = stream(
        tmp_path / "songs-{000000..000003}.tar",
        max_bad_sample_ratio=1.0,
        on_bad=lambda shard, key, kind, reason: named.add(shard),
    )
    assert len(steps(batches, 12)) == 12
    assert named == {"songs-000001.tar", "songs-000002.tar", "songs-000003.tar"}
    assert batches.bad_samples().keys() == {"damaged", "missing"}
    with pytest.raises(ValueError, match="no clip came out of the last"):
        steps(stream(tmp_path / "songs-000002.tar"), 1)


def test_a_site_that_is_down_is_told_apart_from_tars_that_are_broken(songs: Path) -> None:
    with serving(songs) as server:
        batches = stream(f"{server.url}/songs-{{000000..000002}}.tar")
    for workers in (0, 1):
        batches.ahead = ReadAhead(workers)
        with pytest.raises(StorageUnavailable, match=r"no clip came out of the last .*refused"):
            steps(batches, 1)


def test_its_state_says_that_a_resume_is_statistical_only(songs: Path) -> None:
    batches = stream(songs / "songs-000000.tar")
    steps(batches, 2)
    state = batches.state()
    assert state["resume"] == "statistical only" and state["next_step"] == 2
    resumed = stream(songs / "songs-000000.tar")
    resumed.resume(state)
    assert resumed.next_step == 2 and len(steps(resumed, 1)) == 1
    with pytest.raises(ValueError, match="of an indexed set"):
        resumed.identity.check({"version": 1, "next_step": 2})


def test_held_out_songs_never_come(songs: Path) -> None:
    with pytest.raises(ValueError, match="no clip came out of the last"):
        steps(stream(songs / "songs-000000.tar", held_out=1.0), 1)


def test_held_out_songs_are_what_a_run_is_judged_by(songs: Path) -> None:
    piped = UnindexedShards(str(songs / "songs-{000000..000002}.tar"), RATE, CLIP, held_out=0.5)
    whole = [
        batch["audio"]
        for batch in held_out_batches(piped, micro_batch=4, rank=0, world=1, limit=16)
    ]
    assert len(whole) == 4 and all(batch.shape == (4, CLIP, 1) for batch in whole)
    ranks = [
        list(held_out_batches(piped, micro_batch=2, rank=rank, world=2, limit=16))
        for rank in range(2)
    ]
    both = [torch.cat([batch["audio"] for batch in step]) for step in zip(*ranks)]
    assert all(map(torch.equal, whole, both))
    training = steps(UnindexedBatches(piped, seed=3, global_batch=8, micro_batch=4), 20)
    trained = {float(clip[0]) for step in training for clip in step}
    assert not trained & {float(clip[0]) for batch in whole for clip in batch}
    everything = UnindexedShards(piped.urls, RATE, CLIP)
    assert not list(held_out_batches(everything, micro_batch=4, rank=0, world=1, limit=16))


def test_damage_is_passed_over_and_lost_tars_stop_what_the_run_is_judged_by(
    songs: Path, tmp_path: Path
) -> None:
    (tmp_path / "songs-000000.tar").write_bytes(b"\x00\xff" * 5000)
    (tmp_path / "songs-000001.tar").write_bytes((songs / "songs-000001.tar").read_bytes())
    piped = UnindexedShards(str(tmp_path / "songs-{000000..000001}.tar"), RATE, CLIP, held_out=0.5)
    assert list(held_out_batches(piped, micro_batch=2, rank=0, world=1, limit=4))
    for fault in ("cut", "reset", 503):
        with serving(tmp_path) as server:
            server.spoil["songs-000001.tar"] = [fault]
            broke_off = UnindexedShards(
                f"{server.url}/songs-{{000000..000001}}.tar", RATE, CLIP, held_out=0.5
            )
            with pytest.raises(StorageUnavailable, match=r"songs-000001.tar could not be read"):
                list(held_out_batches(broke_off, micro_batch=2, rank=0, world=1, limit=400))
    lost = UnindexedShards(str(tmp_path / "songs-{000002..000003}.tar"), RATE, CLIP, held_out=0.5)
    with pytest.raises(StorageUnavailable, match=r"songs-000002.tar could not be read"):
        list(held_out_batches(lost, micro_batch=2, rank=0, world=1, limit=4))
