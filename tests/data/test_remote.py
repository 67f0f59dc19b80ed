"""Shard sets behind URLs: the same stream as from the folder, through stalls, resets, 5xx and bodies cut short."""

import hashlib
import json
import pickle
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.shard_server import ShardServer, serving
from fixtures.tiny_shards import CLIP, batches, same, steps, write_codes, write_songs

from megajukebox.data.shards.remote import LostShard, RemoteConfig, ShardSource
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.shards.transports import is_url
from megajukebox.data.stream.bad_samples import StorageUnavailable
from megajukebox.data.stream.code_dataset import CodeWindows
from megajukebox.data.stream.song_dataset import SongClips
from megajukebox.data.stream.worker_pool import ReadAhead

FAULTS = [503, "reset", "stall", "cut", 429, 500]


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("sets") / "songs")


@pytest.fixture
def server(songs: Path) -> Iterator[ShardServer]:
    with serving(songs) as running:
        yield running


def remote(tmp_path: Path, **changed: Any) -> RemoteConfig:
    return RemoteConfig(**{"cache": tmp_path / "cache", "backoff": 0.001, "stall": 20.0, **changed})


def wait_for(path: Path, folder: Path, seconds: float = 100.0) -> None:
    deadline = time.monotonic() + seconds
    while not (folder / path).exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


def test_a_set_behind_a_url_gives_the_stream_of_its_folder(
    server: ShardServer, songs: Path, tmp_path: Path
) -> None:
    far = ShardSet(server.url, remote(tmp_path))
    assert far.fingerprint == ShardSet(songs).fingerprint and far.source == server.url
    for ahead in (ReadAhead(0), ReadAhead(2)):
        read = steps(batches(SongClips(far, CLIP), ahead=ahead), 6)
        assert same(read, steps(batches(SongClips(ShardSet(songs), CLIP)), 6))
    for shard in far.index["shards"]:  # fetched in the background meanwhile
        wait_for(shard["name"], far.folder)
    assert not list(far.folder.glob("*.part"))


def test_training_starts_before_any_shard_is_here(
    server: ShardServer, songs: Path, tmp_path: Path
) -> None:
    far = ShardSet(server.url, remote(tmp_path))
    far.prefetch = lambda shards: None  # type: ignore[method-assign]
    read = steps(batches(SongClips(far, CLIP)), 2)
    assert same(read, steps(batches(SongClips(ShardSet(songs), CLIP)), 2))
    assert not list(far.folder.glob("*.tar")) and any(span for _, span in server.asked)


def test_stalls_resets_5xx_and_cut_bodies_are_tried_again(
    server: ShardServer, songs: Path, tmp_path: Path
) -> None:
    for path in songs.iterdir():
        server.spoil[path.name] = list(FAULTS[: 2 if path.suffix == ".json" else 5])
    far = ShardSet(server.url, remote(tmp_path, tries=7, stall=1.0))
    events: list[tuple[str, ...]] = []
    read = steps(batches(SongClips(far, CLIP), on_bad=lambda *event: events.append(event)), 4)
    assert same(read, steps(batches(SongClips(ShardSet(songs), CLIP)), 4)) and not events
    assert not server.spoil["index.json"]


def test_a_fetch_that_broke_off_is_continued_where_it_was(
    server: ShardServer, songs: Path, tmp_path: Path
) -> None:
    name = "songs-000000.tar"
    far = ShardSet(server.url, remote(tmp_path))
    server.spoil[name] = ["cut", "cut"]
    far.cache.bring(0)
    assert (far.folder / name).read_bytes() == (songs / name).read_bytes()
    spans = [span for asked, span in server.asked if asked == name]
    size = (songs / name).stat().st_size
    assert spans[0] is None and spans[1] == f"bytes={size // 2}-"


def test_a_site_without_ranges_sends_whole_shards(
    server: ShardServer, songs: Path, tmp_path: Path
) -> None:
    server.ranges = False
    far = ShardSet(server.url, remote(tmp_path))
    server.spoil["songs-000001.tar"] = ["cut"]
    assert same(
        steps(batches(SongClips(far, CLIP)), 4), steps(batches(SongClips(ShardSet(songs), CLIP)), 4)
    )


@pytest.mark.parametrize("world", [1, 2])
def test_a_lost_shard_is_reported_and_replaced_alike_on_any_world(
    server: ShardServer, songs: Path, tmp_path: Path, world: int
) -> None:
    server.spoil["songs-000001.tar"] = [404] * 1000
    far = ShardSet(server.url, remote(tmp_path))
    events: list[tuple[str, ...]] = []
    whole = steps(
        batches(
            SongClips(far, CLIP),
            on_bad=lambda *event: events.append(event),
            max_bad_sample_ratio=1.0,
        ),
        8,
    )
    assert {event[0] for event in events} == {
        "songs-000001.tar"
    } and "could not be fetched" in events[0][3]
    again = ShardSet(server.url, remote(tmp_path, cache=tmp_path / "other"))
    parts = [
        steps(batches(SongClips(again, CLIP), world, rank, max_bad_sample_ratio=1.0), 8)
        for rank in range(world)
    ]
    assert same([torch.cat(step) for step in zip(*parts)], whole)


def test_a_lost_shard_stops_the_run_where_that_is_asked(
    server: ShardServer, tmp_path: Path
) -> None:
    server.spoil["songs-000001.tar"] = [503] * 1000
    for workers in (0, 1):
        far = ShardSet(server.url, remote(tmp_path, lost="stop", tries=2))
        with pytest.raises(
            StorageUnavailable,
            match=r"(?s)songs-000001.tar could not be fetched in 2 tries .*lost: stop",
        ):
            steps(batches(SongClips(far, CLIP), ahead=ReadAhead(workers)), 8)


def test_a_server_that_is_down_is_told_apart_from_a_corpus_that_is_broken(
    server: ShardServer, tmp_path: Path
) -> None:
    far = SongClips(ShardSet(server.url, remote(tmp_path, tries=2)), CLIP)
    for name in server.folder.glob("*.tar"):
        server.spoil[name.name] = [503] * 10_000
    with pytest.raises(StorageUnavailable, match=r"too many bad samples.*could not be fetched"):
        steps(batches(far), 8)


def test_a_lost_shard_is_not_asked_for_again_and_again(server: ShardServer, tmp_path: Path) -> None:
    server.spoil["songs-000001.tar"] = [503] * 1000
    far = ShardSet(server.url, remote(tmp_path, tries=3))
    far.prefetch = lambda shards: None  # type: ignore[method-assign]
    steps(batches(SongClips(far, CLIP), max_bad_sample_ratio=1.0), 8)
    assert sum(name == "songs-000001.tar" for name, _ in server.asked) == 3


def test_a_shard_of_another_content_never_enters_the_cache(songs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    for path in songs.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    data = bytearray((folder / "songs-000000.tar").read_bytes())
    data[5000] ^= 1
    (folder / "songs-000000.tar").write_bytes(data)
    with serving(folder) as server:
        far = ShardSet(server.url, remote(tmp_path, tries=2))
        with pytest.raises(LostShard, match="sha256"):
            far.cache.bring(0)
        (folder / "songs-000001.tar").write_bytes(b"x" * 10_000_000)
        with pytest.raises(LostShard, match="longer than the"):
            far.cache.bring(1)
        assert not list(far.folder.glob("*.tar"))
        (folder / "songs.npy").write_bytes(b"other")
        with pytest.raises(
            ValueError, match=r"songs.npy is not the file that index.json speaks of"
        ):
            ShardSet(server.url, remote(tmp_path, cache=tmp_path / "fresh"))


def test_the_cache_keeps_to_its_size_and_drops_what_was_unused_longest(
    server: ShardServer, songs: Path, tmp_path: Path
) -> None:
    sizes = [shard["bytes"] for shard in ShardSet(songs).index["shards"]]
    far = ShardSet(server.url, remote(tmp_path, cache_bytes=max(sizes) + min(sizes)))
    assert same(
        steps(batches(SongClips(far, CLIP)), 9), steps(batches(SongClips(ShardSet(songs), CLIP)), 9)
    )
    assert sum(path.stat().st_size for path in far.folder.glob("*.tar")) <= max(sizes) + min(sizes)
    tiny = ShardSet(server.url, remote(tmp_path, cache=tmp_path / "tiny", cache_bytes=100))
    assert same(
        steps(batches(SongClips(tiny, CLIP)), 2),
        steps(batches(SongClips(ShardSet(songs), CLIP)), 2),
    )
    with pytest.raises(ValueError, match="the cache 100; enlarge it"):
        tiny.cache.bring(0)


def test_a_token_goes_along_where_the_url_says_where_the_name_goes(
    server: ShardServer, tmp_path: Path
) -> None:
    far = ShardSource(f"{server.url}/{{name}}?token=hush", remote(tmp_path))
    assert far.file_url("index.json") == f"{server.url}/index.json?token=hush"


def test_an_index_that_keeps_a_checksum_from_us_is_refused_in_words(
    songs: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(songs, tmp_path / "site")
    index = json.loads((folder / "index.json").read_text())
    for spoilt in (
        {"songs_file": {"name": "songs.npy"}},
        {"lyrics_model": {"name": "lyrics.model"}},
    ):
        (folder / "index.json").write_text(json.dumps(index | spoilt))
        with serving(folder) as server, pytest.raises(ValueError, match="sha256"):
            ShardSet(server.url, remote(tmp_path))


def test_a_remote_set_survives_a_trip_to_another_process_without_asking_again(
    server: ShardServer, tmp_path: Path
) -> None:
    far = ShardSet(server.url, remote(tmp_path))
    asked = len(server.asked)
    again = pickle.loads(pickle.dumps(far))
    assert len(server.asked) == asked and again.fingerprint == far.fingerprint
    assert again.read_member(0, "json") == far.read_member(0, "json")


def test_commands_run_only_where_they_are_allowed(tmp_path: Path) -> None:
    codes = write_codes(tmp_path / "codes")
    trace = tmp_path / "ran"
    url = f"pipe:touch {trace}; cat {codes}/{{name}}"
    for forbidden in (url, "scp://host/songs"):
        with pytest.raises(ValueError, match="would run a command; give --allow-pipe"):
            ShardSet(forbidden, remote(tmp_path))
    assert not trace.exists()
    far = ShardSet(url, remote(tmp_path, allow_pipe=True))
    read = steps(batches(CodeWindows(far, "top", 8)), 4)
    assert same(read, steps(batches(CodeWindows(ShardSet(codes), "top", 8)), 4)) and trace.exists()
    with pytest.raises(ValueError, match=r"write \{name\} where"):
        ShardSet("pipe:cat x", remote(tmp_path, allow_pipe=True))


@pytest.mark.parametrize(
    "command", ["sleep 60; echo {name}", "cat /nowhere/{name}", "exit 3; {name}"]
)
def test_a_command_that_hangs_or_fails_is_given_up(tmp_path: Path, command: str) -> None:
    with pytest.raises(ValueError, match="could not be fetched in 2 tries"):
        ShardSet(f"pipe:{command}", remote(tmp_path, allow_pipe=True, tries=2, stall=1.0))


def test_names_of_an_index_cannot_leave_the_cache(songs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    for path in songs.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["name"] = "../../evil.tar"
    (folder / "index.json").write_text(json.dumps(index))
    with serving(folder) as server:
        far = ShardSet(server.url, remote(tmp_path))
        far.prefetch(range(3))
        with pytest.raises(ValueError, match="is not the name of a tar"):
            far.read_member(0, "json")
        (folder / "lyrics.model").write_bytes(b"x")
        sha = hashlib.sha256(b"x").hexdigest()
        (folder / "index.json").write_text(
            json.dumps({**index, "lyrics_model": {"name": "../m", "sha256": sha}})
        )
        with pytest.raises(ValueError, match="names no file of this folder"):
            ShardSet(server.url, remote(tmp_path))
        assert not list(tmp_path.rglob("evil*"))


def test_what_a_url_keeps_secret_is_not_shown(server: ShardServer, tmp_path: Path) -> None:
    far = ShardSet(f"{server.url}?token=hush", remote(tmp_path))
    assert (
        far.source == server.url
        and is_url(far.source)
        and not is_url("C:/x")
        and not is_url("/data/songs")
    )
    server.spoil["songs-000000.tar"] = [404]
    with pytest.raises(LostShard) as lost:
        far.cache.bring(0)
    assert "hush" not in str(lost.value)
