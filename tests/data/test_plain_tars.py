"""Tars as webdataset, audio2dataset, GNU tar and macOS make them: the songs in them come, or the way out is told."""

import bz2
import gzip
import io
import lzma
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from fixtures.shard_server import serving
from fixtures.tiny_shards import CLIP, RATE, ramp

from megajukebox.common.errors import BadSampleError, UserError
from megajukebox.data.audio import encode_flac, encode_wav
from megajukebox.data.shards import plain_tars
from megajukebox.data.shards.plain_tars import songs_of
from megajukebox.data.shards.remote import RemoteConfig
from megajukebox.data.stream.sample_order import rng
from megajukebox.data.stream.song_dataset import split
from megajukebox.data.stream.unindexed import UnindexedShards, clips_of, is_held_out

REMOTE = RemoteConfig()
FLAC = encode_flac(ramp(3), RATE)
KEYS = [f"{song:06d}" for song in range(4)]


def encoded(kind: str, rate: int = RATE) -> bytes:
    """The song in another format."""
    import soundfile

    with io.BytesIO() as file:
        soundfile.write(file, ramp(3), rate, format=kind)
        return file.getvalue()


def tar_of(path: Path, files: dict[str, bytes], form: int = tarfile.USTAR_FORMAT) -> str:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(path)


def packed_by(command: str) -> Callable[[Path], str]:
    """A tar that GNU tar makes of a folder of songs."""

    def make(folder: Path) -> str:
        songs = folder / "songs"
        songs.mkdir()
        for key in KEYS:
            (songs / f"{key}.flac").write_bytes(FLAC)
            (songs / f"{key}.json").write_bytes(b"{}")
        subprocess.run(command, shell=True, cwd=folder, check=True)
        return str(next(folder.glob("x.t*")))

    return make


def written_by_webdataset(extension: str, data: bytes) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        with webdataset.writer.TarWriter(str(folder / "x.tar"), encoder=False) as tar:
            for key in KEYS:
                tar.write({"__key__": key, extension: data, "json": b"{}", "txt": b"la"})
        return str(folder / "x.tar")

    return make


def named(template: str, extension: str = "flac", form: int = tarfile.PAX_FORMAT) -> Callable:
    """A tar whose keys are `template` with the number of the song in it."""

    def make(folder: Path) -> str:
        files: dict[str, bytes] = {}
        for key in KEYS:
            files[f"{template.format(key)}.{extension}"] = FLAC
            files[f"{template.format(key)}.json"] = b"{}"
        return tar_of(folder / "x.tar", files, form)

    return make


def compressed(pack: Callable[[bytes], bytes], ending: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        plain = Path(named("{}")(folder)).read_bytes()
        (folder / f"x.tar.{ending}").write_bytes(pack(plain))
        return str(folder / f"x.tar.{ending}")

    return make


READ: dict[str, Callable[[Path], str]] = {
    "webdataset flac": written_by_webdataset("flac", FLAC),
    "webdataset wav": written_by_webdataset("wav", encode_wav(ramp(3), RATE)),
    "webdataset ogg": written_by_webdataset("ogg", encoded("OGG")),
    "webdataset mp3": written_by_webdataset("mp3", encoded("MP3")),
    "tar of names": packed_by("cd songs && tar cf ../x.tar *"),
    "pax": packed_by("cd songs && tar --format=pax -cf ../x.tar *"),
    "sorted folder": packed_by("tar --sort=name -cf x.tar -C songs ."),
    "folder in the key": packed_by("tar --sort=name -cf x.tar songs"),
    "not sorted": packed_by("tar cf x.tar -C songs ."),
    "not sorted, with its folder": packed_by("tar cf x.tar songs"),
    "tar by gzip": packed_by("tar czf x.tgz -C songs ."),
    "gzip": compressed(gzip.compress, "gz"),
    "bzip2": compressed(bz2.compress, "bz2"),
    "capitals": named("{}", "FLAC"),
    "no JSON": lambda folder: tar_of(folder / "x.tar", {f"{key}.flac": FLAC for key in KEYS}),
    "spaces": named("a song of {} words"),
    "accents": named("Ännchen über Ωmega {}"),
    "accents in GNU's form": named("Ännchen über Ωmega {}", form=tarfile.GNU_FORMAT),
    "long names": named("x" * 300 + "{}"),
    "a folder with dots": named("v1.2/disc.1/{}"),
    "deep folders": named("./train/a/b/c/{}"),
}


@pytest.mark.parametrize("kind", READ)
def test_every_song_of_a_tar_comes_whoever_made_it(kind: str, tmp_path: Path) -> None:
    tar = READ[kind](tmp_path)
    songs = list(songs_of(tar, REMOTE))
    assert len({song.key for song in songs}) == len(songs) == len(KEYS)
    assert all(key in song.key for key, song in zip(KEYS, sorted(songs, key=lambda s: s.key)))
    assert not any(song.key.startswith("./") for song in songs)
    for song in songs:
        clips = list(clips_of(song, UnindexedShards(tar, RATE, CLIP), rng(0, "t", 0)))
        assert len(clips) == 4 and all(clip.shape == (CLIP, 1) for clip in clips)


@pytest.mark.parametrize("kind", [kind for kind in READ if "not sorted" not in kind])
def test_keys_are_those_of_webdataset(kind: str, tmp_path: Path) -> None:
    theirs = webdataset.WebDataset(READ[kind](tmp_path), shardshuffle=False, empty_check=False)
    ours = {
        song.key
        for song in songs_of(str(next(tmp_path.glob("x.t*[!r]"), tmp_path / "x.tar")), REMOTE)
    }
    assert {sample["__key__"].removeprefix("./") for sample in theirs} == ours


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (
            {"a.m4a": b"x", "a.json": b"{}"},
            r"m4a is not read from tars; convert it .* or use prepare",
        ),
        ({"01. Title.flac": FLAC}, r"the key ends at the first dot .*ends in ' title.flac'"),
        ({"song.mix.FLAC": FLAC}, r"leave no other dot than the one before flac"),
    ],
)
def test_a_song_that_cannot_be_read_says_the_way_out(
    files: dict[str, bytes], told: str, tmp_path: Path
) -> None:
    tar = tar_of(tmp_path / "x.tar", files)
    [song] = songs_of(tar, REMOTE)
    with pytest.raises(BadSampleError, match=told):
        list(clips_of(song, UnindexedShards(tar, RATE, CLIP), rng(0, "t", 0)))


def test_another_sample_rate_and_a_song_too_large_say_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = tar_of(tmp_path / "x.tar", {"a.flac": FLAC})
    [song] = songs_of(tar, REMOTE)
    with pytest.raises(BadSampleError, match="is 11025 Hz, wanted 22050 Hz; resample it, or let"):
        list(clips_of(song, UnindexedShards(tar, 22_050, CLIP), rng(0, "t", 0)))
    monkeypatch.setattr(plain_tars, "MAX_AUDIO_BYTES", 100)
    [song] = songs_of(tar, REMOTE)
    with pytest.raises(BadSampleError, match="at most 100 are read; cut it into songs"):
        list(clips_of(song, UnindexedShards(tar, RATE, CLIP), rng(0, "t", 0)))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda plain: lzma.compress(plain), "compressed by xz; unpack it, or compress it by gzip"),
        (lambda plain: b"\x28\xb5\x2f\xfd" + plain, "compressed by zstd"),
        (lambda plain: b"PK\x03\x04" + plain, "compressed by zip"),
        (lambda plain: gzip.compress(plain)[:-100], "the compressed tar ends early"),
        (lambda plain: gzip.compress(plain)[:-100] + bytes(900), "damaged"),
        (lambda plain: gzip.compress(plain)[:-8] + bytes(8), "damaged .*CRC"),
        (lambda plain: gzip.compress(gzip.compress(plain)), "damaged"),
    ],
)
def test_a_tar_that_cannot_be_unpacked_is_named_with_the_way_out(
    make: Callable[[bytes], bytes], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "y.tar.gz"
    path.write_bytes(make(Path(named("{}")(tmp_path)).read_bytes()))
    with pytest.raises(BadSampleError, match=told) as refused:
        list(songs_of(str(path), REMOTE))
    assert str(refused.value).startswith("y.tar.gz: ")


def test_a_tar_without_audio_says_what_it_holds(tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "x.tar", {"a.jpg": b"x", "b.jpg": b"x", "a.json": b"{}", "readme": b""})
    with pytest.raises(BadSampleError, match=r"none of its 3 files is audio \(.jpg, .json\)"):
        list(songs_of(tar, REMOTE))


def test_hidden_and_meta_files_and_folders_are_no_songs(tmp_path: Path) -> None:
    files = {"._a.flac": b"mac", "./._b.flac": b"mac", "__meta__.json": b"{}", "a.flac": FLAC}
    assert [song.key for song in songs_of(tar_of(tmp_path / "x.tar", files), REMOTE)] == ["a"]


def test_a_song_in_two_formats_is_read_once_from_the_better(tmp_path: Path) -> None:
    for files in (
        {"a.mp3": b"no", "a.flac": FLAC, "a.m4a": b"no"},
        {"a.flac": FLAC, "a.mp3": b"no"},
    ):
        tar = tar_of(tmp_path / "x.tar", files)
        [song] = songs_of(tar, REMOTE)
        assert song.audio == FLAC
        assert list(clips_of(song, UnindexedShards(tar, RATE, CLIP), rng(0, "t", 0)))


def test_a_bomb_ends_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_tars, "MAX_UNPACKED_BYTES", 1 << 20)
    big = tar_of(tmp_path / "x.tar", {"a.bin": bytes(4 << 20), "b.flac": FLAC})
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(Path(big).read_bytes()))
    with pytest.raises(BadSampleError, match="it unpacks to more than") as refused:
        list(songs_of(str(path), REMOTE))
    assert refused.value.kind == "too_large"


def test_a_compressed_tar_that_breaks_off_on_the_way_is_no_damage(tmp_path: Path) -> None:
    compressed(gzip.compress, "gz")(tmp_path)
    with serving(tmp_path) as server:
        assert len(list(songs_of(f"{server.url}/x.tar.gz", REMOTE))) == len(KEYS)
        server.spoil["x.tar.gz"] = ["cut"]
        with pytest.raises(ConnectionError, match=r"x\.tar\.gz broke off"):
            list(songs_of(f"{server.url}/x.tar.gz", REMOTE))


def test_a_folder_of_tars_is_read_whatever_they_are_called(tmp_path: Path) -> None:
    for name in ("b.tar.gz", "a.tar", "c.TGZ", "notes.txt", ".tar"):
        (tmp_path / name).write_bytes(b"")
    tars = UnindexedShards(str(tmp_path), RATE, CLIP).tars()
    assert [Path(tar).name for tar in tars] == ["a.tar", "b.tar.gz", "c.TGZ"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no tar; name the tars"):
        UnindexedShards(str(tmp_path / "empty"), RATE, CLIP).tars()


def test_the_split_of_plain_keys_is_that_of_indexed_sets(tmp_path: Path) -> None:
    """A song stays where it is when a set of the same keys gets an index."""
    names = {f"song-{n}.flac": FLAC for n in range(40)}
    tar = tar_of(tmp_path / "x.tar", {f"./{name}": data for name, data in names.items()})
    shards = UnindexedShards(tar, RATE, CLIP, held_out=0.3)
    ours = [is_held_out(song, shards) for song in songs_of(tar, REMOTE)]
    keys = np.array([name.removesuffix(".flac").encode() for name in names], dtype="S48")
    assert ours == split(keys, 0.3).tolist()
    latin = tar_of(tmp_path / "y.tar", {"\udce9t\udce9.flac": FLAC})
    [song] = songs_of(latin, REMOTE)
    assert is_held_out(song, shards) in (True, False)
