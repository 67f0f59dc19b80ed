"""Shard sets in object stores: fsspec brings the bytes, and the cache, tries and stalls are those of http."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fixtures.tiny_shards import CLIP, RATE, batches, same, steps, write_songs
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry as loaded_backends

from megajukebox.common.errors import UserError
from megajukebox.data.shards.remote import LostShard, RemoteConfig
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.shards.transports import FsspecTransport, open_stream
from megajukebox.data.stream.song_dataset import SongClips
from megajukebox.data.stream.unindexed import UnindexedBatches, UnindexedShards
from megajukebox.data.stream.worker_pool import ReadAhead


class BackendError(Exception):
    """Object stores raise classes of their own, not OSError."""


class FaultyBucket(MemoryFileSystem):
    """A bucket whose reads fail as often as `faults` says, by file name."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    faults: ClassVar[dict[str, list[str]]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("faulty://", "memory://"))

    def _meet_fault(self, path: str) -> None:
        faults = self.faults.get(path.rpartition("/")[2], [])
        fault = faults.pop(0) if faults else None
        if fault == "stall":
            time.sleep(3)
        elif fault == "error":
            raise BackendError("503 Slow Down")

    def open(self, path: str, *args: Any, **options: Any) -> Any:
        self._meet_fault(path)
        return super().open(path, *args, **options)

    def cat_file(self, path: str, *args: Any, **options: Any) -> bytes:
        self._meet_fault(path)
        return super().cat_file(path, *args, **options)


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("sets") / "songs")


@pytest.fixture(scope="module", params=["memory", "faulty"])
def url(request: pytest.FixtureRequest, songs: Path) -> Iterator[str]:
    fsspec.register_implementation("faulty", FaultyBucket, clobber=True)
    bucket = fsspec.filesystem(request.param)
    for path in songs.iterdir():
        bucket.pipe_file(f"/bucket/songs/{path.name}", path.read_bytes())
    yield f"{request.param}://bucket/songs"
    FaultyBucket.faults.clear()


def remote(tmp_path: Path, **changed: Any) -> RemoteConfig:
    return RemoteConfig(**{"cache": tmp_path / "cache", "backoff": 0.001, "stall": 20.0, **changed})


def test_a_set_in_a_bucket_gives_the_stream_of_its_folder(
    url: str, songs: Path, tmp_path: Path
) -> None:
    far = ShardSet(url, remote(tmp_path))
    near = steps(batches(SongClips(ShardSet(songs), CLIP)), 4)
    for ahead in (ReadAhead(0), ReadAhead(1)):  # workers are forked: they open the bucket anew
        assert same(steps(batches(SongClips(far, CLIP), ahead=ahead), 4), near)
    assert far.fingerprint == ShardSet(songs).fingerprint


def test_training_starts_by_ranges_before_a_shard_is_here(
    url: str, songs: Path, tmp_path: Path
) -> None:
    far = ShardSet(url, remote(tmp_path))
    far.prefetch = lambda shards: None  # type: ignore[method-assign]
    near = steps(batches(SongClips(ShardSet(songs), CLIP)), 2)
    assert same(steps(batches(SongClips(far, CLIP)), 2), near)
    assert not list(far.folder.glob("*.tar"))


def test_errors_and_stalls_of_a_backend_are_tried_again(songs: Path, tmp_path: Path) -> None:
    fsspec.register_implementation("faulty", FaultyBucket, clobber=True)
    bucket = fsspec.filesystem("faulty")
    for path in songs.iterdir():
        bucket.pipe_file(f"/again/{path.name}", path.read_bytes())
        FaultyBucket.faults[path.name] = ["error", "stall"]
    far = ShardSet("faulty://again", remote(tmp_path, stall=1.0))
    far.cache.bring(0)
    name = far.index["shards"][0]["name"]
    assert (far.folder / name).read_bytes() == (songs / name).read_bytes()
    assert not FaultyBucket.faults[name]
    FaultyBucket.faults["songs-000001.tar"] = ["error"] * 9
    with pytest.raises(LostShard, match=r"could not be fetched in 2 tries .*503 Slow Down"):
        ShardSet("faulty://again", remote(tmp_path, tries=2)).cache.bring(1)
    FaultyBucket.faults.clear()


def test_a_fetch_that_broke_off_is_continued_where_it_was(
    url: str, songs: Path, tmp_path: Path
) -> None:
    far = ShardSet(url, remote(tmp_path))
    name = far.index["shards"][2]["name"]
    data = (songs / name).read_bytes()
    (far.folder / f"{name}.part").write_bytes(data[:5000])
    starts = []
    blocks = FsspecTransport.blocks

    def noted(self: FsspecTransport, url: str, start: int = 0) -> Any:
        starts.append(start)
        return blocks(self, url, start)

    far.cache.site.transport.blocks = noted.__get__(far.cache.site.transport)  # type: ignore[method-assign]
    far.cache.bring(2)
    assert (far.folder / name).read_bytes() == data and starts == [5000]


def test_a_file_that_is_not_there_is_not_tried_again(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"could not be fetched in 1 tries .*is it the folder that"):
        ShardSet(f"{url}/nothing", remote(tmp_path))


def test_tars_without_an_index_are_read_from_a_bucket(url: str, songs: Path) -> None:
    name = "songs-000000.tar"
    with open_stream(f"{url}/{name}", RemoteConfig(stall=1.0)) as file:
        assert file.read() == (songs / name).read_bytes()
    tars = "songs-{000000..000002}.tar"
    near = UnindexedBatches(
        UnindexedShards(f"{songs}/{tars}", RATE, CLIP), seed=3, global_batch=4, micro_batch=4
    )
    far = UnindexedBatches(
        UnindexedShards(f"{url}/{tars}", RATE, CLIP), seed=3, global_batch=4, micro_batch=4
    )
    for _, ours, theirs in zip(range(3), near, far):
        assert (ours[0]["audio"] == theirs[0]["audio"]).all()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/songs", "s3:// needs a package that is not installed: pip install s3fs"),
        ("gs://bucket/songs", "gs:// needs a package that is not installed: pip install gcsfs"),
        ("nowhere://bucket", "is nowhere:// right"),
    ],
)
def test_a_missing_backend_is_named_with_what_to_install(
    url: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, package, None)
    for protocol in ("s3", "gs"):  # that other tests may have loaded
        monkeypatch.delitem(loaded_backends, protocol, raising=False)
    with pytest.raises(UserError) as refused:
        ShardSet(url, remote(tmp_path))
    assert message in str(refused.value)
