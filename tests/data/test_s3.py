"""Shard sets on a real S3-compatible server: the stream of their folder, whatever the server does on the way."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.s3_server import SpoiltS3, serving_s3
from fixtures.tiny_shards import CLIP, RATE, batches, same, steps, write_songs

from megajukebox.common.errors import UserError
from megajukebox.data.shards.blended_sets import ShardBlend, open_data
from megajukebox.data.shards.plain_tars import songs_of
from megajukebox.data.shards.remote import LostShard, RemoteConfig
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.blend import BlendedClips
from megajukebox.data.stream.song_dataset import SongClips
from megajukebox.data.stream.worker_pool import ReadAhead

pytestmark = pytest.mark.xdist_group("s3")
URL = "s3://bucket/songs"


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("sets") / "songs")


@pytest.fixture(scope="module")
def s3(songs: Path) -> Iterator[SpoiltS3]:
    with serving_s3(songs) as site:
        yield site


def remote(tmp_path: Path, **changed: Any) -> RemoteConfig:
    return RemoteConfig(**{"cache": tmp_path / "cache", "backoff": 0.001, "stall": 20.0, **changed})


def test_a_set_on_s3_gives_the_stream_of_its_folder(
    s3: SpoiltS3, songs: Path, tmp_path: Path
) -> None:
    far = ShardSet(URL, remote(tmp_path))
    assert far.fingerprint == ShardSet(songs).fingerprint
    near = steps(batches(SongClips(ShardSet(songs), CLIP)), 4)
    for ahead in (ReadAhead(0), ReadAhead(1)):  # a worker is forked, and opens the bucket anew
        assert same(steps(batches(SongClips(far, CLIP), ahead=ahead), 4), near)


@pytest.mark.parametrize("fault", ["slow down", "stall", "cut"])
def test_a_shard_comes_whole_through_faults_and_is_compared(
    s3: SpoiltS3, songs: Path, tmp_path: Path, fault: str
) -> None:
    far = ShardSet(URL, remote(tmp_path, stall=1.0))
    name = far.index["shards"][0]["name"]
    s3.spoil[name] = [fault, fault]
    far.cache.bring(0)
    assert (far.folder / name).read_bytes() == (songs / name).read_bytes()
    assert not s3.spoil[name]


def test_a_shard_that_never_comes_is_lost_and_said_to_be(s3: SpoiltS3, tmp_path: Path) -> None:
    far = ShardSet(URL, remote(tmp_path, tries=2))
    name = far.index["shards"][1]["name"]
    s3.spoil[name] = ["slow down"] * 30
    with pytest.raises(LostShard, match=rf"{name} could not be fetched in 2 tries"):
        far.cache.bring(1)
    s3.spoil[name] = ["denied"] * 30
    with pytest.raises(LostShard, match=rf"{name} could not be fetched in 1 tries"):
        ShardSet(URL, remote(tmp_path)).cache.bring(1)
    s3.spoil[name] = []


def test_another_tar_of_that_name_is_not_taken(s3: SpoiltS3, songs: Path, tmp_path: Path) -> None:
    import boto3

    far = ShardSet(URL, remote(tmp_path, tries=2))
    name = far.index["shards"][2]["name"]
    data = (songs / name).read_bytes()
    client = boto3.client("s3")
    try:
        client.put_object(Bucket="bucket", Key=f"songs/{name}", Body=data[:-1] + b"x")
        with pytest.raises(LostShard, match=r"its sha256 is not the one in index\.json"):
            far.cache.bring(2)
        assert not (far.folder / name).exists()
    finally:
        client.put_object(Bucket="bucket", Key=f"songs/{name}", Body=data)


def test_a_fingerprint_pins_the_set_and_nothing_is_said_of_one_that_is_not_there(
    s3: SpoiltS3, songs: Path, tmp_path: Path
) -> None:
    wanted = ShardSet(songs).fingerprint
    pinned = ShardSet(f"{URL}#sha256={wanted}", remote(tmp_path))
    assert not pinned.cache.ranges  # every byte is compared with a checksum
    with pytest.raises(UserError, match="is wanted: the set was prepared anew"):
        ShardSet(f"{URL}#sha256={'0' * 64}", remote(tmp_path))
    with pytest.raises(UserError, match=r"in 1 tries .*is it the folder that prepare or encode"):
        ShardSet("s3://bucket/nothing", remote(tmp_path))


def test_a_missing_login_is_said_at_once_with_the_way_out(
    s3: SpoiltS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(UserError, match=r"in 1 tries .*Credentials.*set FSSPEC_S3_ANON=true"):
        ShardSet(URL, remote(tmp_path))
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_set_on_s3_is_blended_with_one_on_the_disk(
    s3: SpoiltS3, songs: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    near = write_songs(other / "songs")
    index = (near / "index.json").read_text().replace('"Rare"', '"Rarer"')
    (near / "index.json").write_text(index)  # another set, by its names
    blend = open_data([f"{URL}:3", f"{near}:1"], remote(tmp_path))
    assert isinstance(blend, ShardBlend)
    source = BlendedClips(blend, [SongClips(one, CLIP) for one in blend.sets])
    assert len(steps(batches(source), 4)) == 4
    far = next(one for one in blend.sets if one.cache)
    far.cache.bring(0)
    assert list(far.folder.glob("*.tar"))


def test_plain_tars_are_streamed_from_s3(s3: SpoiltS3, songs: Path) -> None:
    name = "songs-000000.tar"
    near = [song.audio for song in songs_of(str(songs / name), RemoteConfig())]
    assert [song.audio for song in songs_of(f"{URL}/{name}", RemoteConfig(stall=10.0))] == near
    assert RATE and near
