"""megajukebox/data/shards/shard_set.py: tars that are whole or absent, an index that fits them, damage that is noticed."""

import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from fixtures.paths import TESTS

from megajukebox.data.shards.build_index import write_index
from megajukebox.data.shards.shard_set import (
    ShardSample,
    ShardSet,
    finished_shard,
    rows_path,
    write_shard,
)

MADE_BY = {"version": "0", "commit": None, "command": "test"}


def song(number: int, **facts: object) -> ShardSample:
    """A made-up song; every third has lyrics."""
    key = f"song-{number:03d}"
    told = {"version": 1, "key": key, "frames": 100 * number + 1, **facts}
    lyrics = {"txt": f"la {number}".encode()} if number % 3 == 0 else {}
    return ShardSample(
        key,
        100 * number + 1,
        {"json": json.dumps(told).encode(), "flac": os.urandom(700 + number), **lyrics},
    )


def shard_set(folder: Path, songs: list[ShardSample], songs_per_shard: int = 4) -> ShardSet:
    names = []
    for first in range(0, len(songs), songs_per_shard):
        names.append(f"songs-{len(names):06d}.tar")
        write_shard(folder / names[-1], songs[first : first + songs_per_shard])
    write_index(folder, names, kind="songs", sample_rate=11_025, made_by=MADE_BY)
    return ShardSet(folder)


def test_every_member_comes_back(tmp_path):
    songs = [song(n) for n in range(10)]
    shards = shard_set(tmp_path, songs)
    assert len(shards) == 10 and shards.index["songs"] == 10
    for row, wanted in enumerate(songs):
        assert shards.key(row) == wanted.key and shards.songs[row]["frames"] == wanted.frames
        assert shards.read_member(row, "json") == wanted.members["json"]
        assert shards.read_member(row, "audio") == wanted.members["flac"]
        assert shards.read_member(row, "lyrics") == wanted.members.get("txt", b"")
        assert shards.has(row, "lyrics") == ("txt" in wanted.members)
        assert shards.member_extension(row, "audio") == "flac"


def test_plain_tar_sees_the_json_first_and_the_members_of_a_song_together(tmp_path):
    shard_set(tmp_path, [song(n) for n in range(4)])
    with tarfile.open(tmp_path / "songs-000000.tar", "r:") as tar:
        members = tar.getmembers()
    keys = [member.name.partition(".")[0] for member in members]
    assert keys == sorted(keys) and {m.mtime for m in members} == {0}
    assert [m.name.partition(".")[2] for m in members] == [
        "json",
        "flac",
        "txt",
        *["json", "flac"] * 2,
        "json",
        "flac",
        "txt",
    ]


def test_webdataset_reads_the_shards(tmp_path):
    import webdataset

    songs = [song(n) for n in range(5)]
    shard_set(tmp_path, songs, songs_per_shard=5)
    read = list(webdataset.WebDataset(str(tmp_path / "songs-000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in read] == [wanted.key for wanted in songs]
    for sample, wanted in zip(read, songs):
        assert {name: sample[name] for name in wanted.members} == wanted.members


def test_the_same_samples_give_the_same_bytes(tmp_path):
    songs = [song(n) for n in range(3)]
    a, b = (write_shard(tmp_path / name, songs) for name in ("a.tar", "b.tar"))
    assert (
        a["sha256"] == b["sha256"]
        and (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    )


def test_the_index_says_what_is_in_the_set(tmp_path):
    songs = [
        song(0, artist="A", genres=["x", "y"], year=1990),
        song(1, artist="A", genres=["y"]),
        song(2, year=2001),
    ]
    shards = shard_set(tmp_path, songs, songs_per_shard=2)
    index = shards.index
    assert index["vocabulary"]["artist"] == {"A": 2} and index["vocabulary"]["genres"] == {
        "x": 1,
        "y": 2,
    }
    assert index["vocabulary"]["moods"] == {} and index["years"] == [1990, 2001]
    assert index["seconds"] == pytest.approx(sum(s.frames for s in songs) / 11_025)
    assert [(s["songs"], s["first"], s["bytes"]) for s in index["shards"]] == [
        (2, 0, shards.path(0).stat().st_size),
        (1, 2, shards.path(1).stat().st_size),
    ]
    assert index["members"] == ["json", "audio", "lyrics"] and index["lyrics_model"] is None
    assert list(shards.songs["shard"]) == [0, 0, 1]


def test_code_shards_are_the_same_thing_with_other_members(tmp_path):
    levels = {f"{name}.npy": name.encode() * 9 for name in ("top", "middle", "bottom")}
    write_shard(
        tmp_path / "codes-000000.tar",
        [ShardSample("k", 8, {"json": b"{}", **levels, "lrc": b"[00:01.00] la"})],
    )
    extra = {"mix": 0.5}
    write_index(
        tmp_path, ["codes-000000.tar"], kind="codes", sample_rate=1, made_by=MADE_BY, extra=extra
    )
    shards = ShardSet(tmp_path)
    assert shards.index["kind"] == "codes" and shards.index["mix"] == 0.5
    assert (
        shards.read_member(0, "middle") == b"middle" * 9
        and shards.member_extension(0, "lyrics") == "lrc"
    )


def test_a_window_into_a_shard_ends_where_the_member_ends(tmp_path):
    wanted = song(3)
    shards = shard_set(tmp_path, [song(2), wanted])
    with shards.open_member(1, "audio") as file:
        assert file.read(100) + file.read() == wanted.members["flac"] and file.read() == b""


def test_a_shard_set_survives_a_trip_to_another_process(tmp_path):
    shards = shard_set(tmp_path, [song(n) for n in range(3)])
    again = pickle.loads(pickle.dumps(shards))
    assert again.fingerprint == shards.fingerprint and isinstance(again.songs, np.memmap)
    assert len(pickle.dumps(shards)) < 1000


def test_one_flipped_bit_is_noticed_and_named(tmp_path):
    shards = shard_set(tmp_path, [song(n) for n in range(3)])
    data = bytearray(shards.path(0).read_bytes())
    data[int(shards.songs[1]["audio_offset"]) + 50] ^= 1
    shards.path(0).write_bytes(data)
    with pytest.raises(
        ValueError, match=r"songs-000000.tar: audio of song-001 is damaged \(crc32\)"
    ):
        shards.read_member(1, "audio")
    assert shards.read_member(0, "json") and shards.read_member(2, "json")


def test_a_truncated_tar_is_noticed_and_named(tmp_path):
    shards = shard_set(tmp_path, [song(n) for n in range(3)])
    os.truncate(shards.path(0), int(shards.songs[2]["audio_offset"]) + 5)
    with pytest.raises(
        ValueError, match=r"songs-000000.tar: audio of song-002 is damaged \(the tar ends"
    ):
        shards.read_member(2, "audio")


def test_what_is_not_a_finished_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        ShardSet(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"not a finished shard set .* run prepare"):
        ShardSet(tmp_path)
    shard_set(tmp_path, [song(1)])
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "format": 2}))
    with pytest.raises(ValueError, match="format 2 is not 1"):
        ShardSet(tmp_path)
    (tmp_path / "index.json").write_text(
        json.dumps({**index, "shards": [{**index["shards"][0], "name": "../x.tar"}]})
    )
    with pytest.raises(ValueError, match=r"shard name '../x.tar'"):
        ShardSet(tmp_path).path(0)
    (tmp_path / "songs.npy").write_bytes(b"x" + (tmp_path / "songs.npy").read_bytes())
    with pytest.raises(
        ValueError, match=r"songs.npy is not the file that index.json was written for"
    ):
        ShardSet(tmp_path)


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def samples():
        yield song(1)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_shard(tmp_path / "a.tar", samples())
    assert list(tmp_path.iterdir()) == []


def test_a_writer_killed_in_the_middle_leaves_no_shard(tmp_path):
    script = f"""
import os, sys
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS / "data")!r}]
from test_shard_set import song, write_shard
def samples():
    yield from map(song, range(9))
    print("writing", flush=True)
    import time; time.sleep(60)
write_shard({str(tmp_path / "a.tar")!r}, samples())
"""
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"writing\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.partial"]
    assert finished_shard(tmp_path / "a.tar") is None
    write_shard(tmp_path / "a.tar", [song(1)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.rows.json", "a.tar"]


def test_a_shard_counts_as_finished_only_with_its_rows_and_its_size(tmp_path):
    path = tmp_path / "a.tar"
    shard = write_shard(path, [song(1)], notes={"x": 1})
    assert finished_shard(path) == shard and shard["notes"] == {"x": 1}
    os.truncate(path, 512)
    assert finished_shard(path) is None
    write_shard(path, [song(1)])
    rows_path(path).unlink()
    assert finished_shard(path) is None
    with pytest.raises(ValueError, match=r"a.tar is not finished"):
        write_index(tmp_path, ["a.tar"], kind="songs", sample_rate=1, made_by=MADE_BY)


def test_a_shard_of_no_songs_is_finished_but_has_no_tar(tmp_path):
    write_shard(tmp_path / "a.tar", [])
    assert finished_shard(tmp_path / "a.tar")["songs"] == [] and not (tmp_path / "a.tar").exists()
    with pytest.raises(ValueError, match="no shard holds a song"):
        write_index(tmp_path, ["a.tar"], kind="songs", sample_rate=1, made_by=MADE_BY)
    write_shard(tmp_path / "b.tar", [song(1)])
    index = write_index(tmp_path, ["a.tar", "b.tar"], kind="songs", sample_rate=1, made_by=MADE_BY)
    assert [shard["name"] for shard in index["shards"]] == ["b.tar"]


def test_reading_songs_does_not_load_torch():
    modules = "megajukebox.commands.prepare, megajukebox.data.shards.shard_set, megajukebox.data.ingest.prepare"
    subprocess.run(
        [sys.executable, "-c", f"import {modules}, sys; assert 'torch' not in sys.modules"],
        check=True,
    )
