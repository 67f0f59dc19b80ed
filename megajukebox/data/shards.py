"""Shard sets: writing tar shards, indexing them, and opening a set by its folder. shards/README.md has the formats.

    <name>.tar         samples; under this name only when complete
    <name>.rows.json   what is in that tar; written after it, so where it lies the shard is finished
    songs.npy          one row a song: shard, key, frames, and offset, bytes and crc32 of every member
    index.json         the rest, written last: a folder with it is a finished set

Song shards and code shards are written and read by the same functions; only their members differ.
"""

import hashlib
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from megajukebox.data.audio import OffsetReader
from megajukebox.data.files import sha256_of, whole, write_whole

FORMAT = 1
MEMBERS = {"songs": ("json", "audio", "lyrics"), "codes": ("json", "top", "middle", "bottom", "lyrics")}
MEMBER_OF = {  # what follows the key's dot in the tar -> member
    "json": "json",
    "flac": "audio",
    "wav": "audio",
    "txt": "lyrics",
    "lrc": "lyrics",
    "top.npy": "top",
    "middle.npy": "middle",
    "bottom.npy": "bottom",
}
COUNTED = ("artist", "genres", "moods", "keywords", "language")  # the fields of <key>.json that have vocabularies
KEY = re.compile(r"[A-Za-z0-9_-]{1,48}")
SHARD_NAME = re.compile(r"[A-Za-z0-9_-]+\.tar")
TAR_BLOCK = 512


@dataclass(frozen=True)
class Sample:
    """One song of a shard."""

    key: str  # [A-Za-z0-9_-]{1,48}
    frames: int  # audio samples per channel
    members: dict[str, bytes]  # by what follows the key's dot, "json" first; the keys of MEMBER_OF


# ---- writing a shard


def write_shard(path: str | Path, samples: Iterable[Sample], notes: Any = None) -> dict[str, Any]:
    """Write `samples` to the tar at `path`, then its rows beside it; returns the rows. Same samples, same bytes.

    `notes` (JSON) is kept in the rows; it is read when the samples are exhausted, so they may fill it as they come.
    Killed at any point, this leaves nothing under the real name, or a complete tar that the next run writes again.
    Without a single sample there is no tar, only rows that say so.
    """
    path = Path(path)
    rows_path(path).unlink(missing_ok=True)  # from here until the new rows are there, the shard is not finished
    with whole(path) as file:
        hashed = HashedFile(file)
        rows = [row for row in written(samples, hashed)]
    if not rows:
        path.unlink()
    facts = {"format": FORMAT, "name": path.name, "bytes": hashed.bytes, "sha256": hashed.sha256.hexdigest()}
    shard = {**facts, "notes": notes, "songs": rows}
    write_whole(rows_path(path), (json.dumps(shard) + "\n").encode())
    return shard


def finished_shard(path: str | Path) -> dict[str, Any] | None:
    """The rows of the shard at `path` if it is finished and its size is right, else None: it is to be written again."""
    path = Path(path)
    if not rows_path(path).is_file():
        return None
    shard = json.loads(rows_path(path).read_bytes())
    if shard["songs"] and (not path.is_file() or path.stat().st_size != shard["bytes"]):
        return None
    return shard


def rows_path(path: Path) -> Path:
    return path.with_suffix(".rows.json")


class HashedFile:
    """Counts and hashes what is written through it, so that no shard is read again for its checksum."""

    def __init__(self, file: BinaryIO):
        self.file, self.bytes, self.sha256 = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.bytes += len(data)
        self.sha256.update(data)
        return self.file.write(data)


def written(samples: Iterable[Sample], file: HashedFile) -> Iterator[dict[str, Any]]:
    """Writes each sample to the tar; yields its row: {"key", "frames", "members": {name: [offset, bytes, crc32]}}."""
    # webdataset imports torch, which the processes that only read songs should not pay for
    from webdataset.writer import TarWriter

    with TarWriter(file, encoder=False, mtime=0, user="megajukebox", group="megajukebox", mode=0o644) as tar:
        for sample in samples:
            check_sample(sample)
            members = {}
            # One call for each member: in one call the writer would sort them, and the JSON would not come first.
            for extension, data in sample.members.items():
                tar.write({"__key__": sample.key, extension: data})
                offset = tar.tarstream.offset - -(-len(data) // TAR_BLOCK) * TAR_BLOCK
                members[MEMBER_OF[extension]] = [offset, len(data), zlib.crc32(data)]
            yield {"key": sample.key, "frames": sample.frames, "members": members}


def check_sample(sample: Sample) -> None:
    """The writers of samples are our own code, so what is wrong here is a bug."""
    assert KEY.fullmatch(sample.key), f"key {sample.key!r} does not match {KEY.pattern}"
    assert next(iter(sample.members)) == "json", f"{sample.key}: the JSON comes first, not {list(sample.members)}"
    names = [MEMBER_OF[extension] for extension in sample.members]
    assert len(set(names)) == len(names), f"{sample.key}: two members of one kind in {list(sample.members)}"


# ---- indexing a set


def write_index(
    folder: str | Path,
    shards: Iterable[str],
    *,
    kind: str,
    sample_rate: int,
    made_by: Mapping[str, str | None],
    lyrics_model: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write songs.npy, then index.json, over the finished `shards` (names of tars, in order); returns the index.

    `kind` is "songs" or "codes" and decides the members, `lyrics_model` names a file in `folder`, `extra` goes into
    the index as it is (what codes say of their VQ-VAE). ValueError for shards that are not finished, and for none.
    """
    folder = Path(folder)
    found = {name: finished_shard(folder / name) for name in shards}
    if unfinished := [name for name, shard in found.items() if shard is None]:
        raise ValueError(f"{folder}: {unfinished[0]} is not finished; run the same command again to make it")
    filled = [shard for shard in found.values() if shard and shard["songs"]]
    if not filled:
        raise ValueError(f"{folder}: no shard holds a song, so there is nothing to index")
    songs = song_rows(filled, MEMBERS[kind])
    assert len(np.unique(songs["key"])) == len(songs), "two songs of one set share a key"
    index = {
        "format": FORMAT,
        "kind": kind,
        "made_by": dict(made_by),
        "sample_rate": sample_rate,
        "members": list(MEMBERS[kind]),
        "songs": len(songs),
        "seconds": int(songs["frames"].sum()) / sample_rate,
        "shards": shard_table(filled),
        "songs_file": write_songs(folder / "songs.npy", songs),
        **said_of(song for shard in filled for song in read_jsons(folder, shard)),
        "lyrics_model": lyrics_model and {"name": lyrics_model, "sha256": sha256_of(folder / lyrics_model)},
        **(extra or {}),
    }
    write_whole(folder / "index.json", (json.dumps(index, indent=1, ensure_ascii=False) + "\n").encode())
    return index


def row_type(members: Iterable[str]) -> np.dtype:
    """The type of one row of songs.npy."""
    fields = [("shard", "<u4"), ("key", "S48"), ("frames", "<u8")]
    for member in members:
        fields += [(f"{member}_offset", "<u8"), (f"{member}_bytes", "<u8"), (f"{member}_crc32", "<u4")]
    return np.dtype(fields)


def song_rows(shards: list[dict[str, Any]], members: tuple[str, ...]) -> np.ndarray:
    """The rows of all songs; a member that a song does not have is 0 bytes at 0."""
    absent = (0, 0, 0)
    rows = [
        (number, song["key"], song["frames"], *(x for m in members for x in song["members"].get(m, absent)))
        for number, shard in enumerate(shards)
        for song in shard["songs"]
    ]
    return np.array(rows, row_type(members))


def shard_table(shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """index.json's "shards"; "first" is the row of a shard's first song."""
    table, first = [], 0
    for shard in shards:
        songs = len(shard["songs"])
        table.append({**{name: shard[name] for name in ("name", "bytes", "sha256")}, "songs": songs, "first": first})
        first += songs
    return table


def read_jsons(folder: Path, shard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every <key>.json of one shard."""
    with open(folder / shard["name"], "rb") as tar:
        for song in shard["songs"]:
            offset, size, _ = song["members"]["json"]
            yield json.loads(os.pread(tar.fileno(), size, offset))


def said_of(songs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """index.json's "vocabulary" (how many songs say each thing, in alphabetical order) and "years"."""
    counters: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
    years = set()
    for song in songs:
        years |= {song["year"]} if "year" in song else set()
        for name, counter in counters.items():
            said = song.get(name) or []
            counter.update([said] if isinstance(said, str) else said)
    vocabulary = {name: dict(sorted(counter.items())) for name, counter in counters.items()}
    return {"vocabulary": vocabulary, "years": [min(years), max(years)] if years else None}


def write_songs(path: Path, songs: np.ndarray) -> dict[str, str]:
    """Write songs.npy; returns what index.json says of it."""
    with io.BytesIO() as file:
        np.save(file, songs, allow_pickle=False)
        data = file.getvalue()
    write_whole(path, data)
    return {"name": path.name, "sha256": hashlib.sha256(data).hexdigest()}


# ---- opening a set


class ShardSet:
    """A finished shard set, opened by its folder. Only the index is read; songs.npy is mapped, tars stay closed.

    index        index.json as a dict
    songs        songs.npy: structured array, one row a song, in the order of the shards
    fingerprint  sha256 of what index.json says but for `made_by`, hex: what other outputs say they were made from
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        data = index_bytes(self.folder)
        self.index: dict[str, Any] = json.loads(data)
        self.fingerprint = fingerprint_of(self.index)
        if self.index.get("format") != FORMAT:
            raise ValueError(
                f"{self.folder}/index.json: format {self.index.get('format')!r} is not {FORMAT}, the one this version "
                f"reads; prepare the set again, or use the version that made it: {self.index.get('made_by')}"
            )
        self.members: tuple[str, ...] = tuple(self.index["members"])
        self.songs = open_songs(self.folder, self.index)

    def __len__(self) -> int:
        return len(self.songs)

    def __reduce__(self) -> tuple[type["ShardSet"], tuple[Path]]:
        """Other processes open the folder again: pickling the map would send all of it."""
        return ShardSet, (self.folder,)

    def path(self, shard: int) -> Path:
        """The tar number `shard` of index["shards"]."""
        name = self.index["shards"][shard]["name"]
        if not SHARD_NAME.fullmatch(name):
            raise ValueError(f"{self.folder}/index.json: shard name {name!r} is not the name of a tar in this folder")
        return self.folder / name

    def key(self, row: int) -> str:
        return self.songs[row]["key"].decode()

    def has(self, row: int, member: str) -> bool:
        return bool(self.songs[row][f"{member}_bytes"])

    def member_extension(self, row: int, member: str) -> str:
        """What follows the key's dot in the tar, e.g. "flac" or "lrc"; read from the tar's own header."""
        with open(self.path(self.songs[row]["shard"]), "rb") as tar:
            header = os.pread(tar.fileno(), 100, int(self.songs[row][f"{member}_offset"]) - TAR_BLOCK)
        return header.rstrip(b"\0").decode().partition(".")[2]

    def read_member(self, row: int, member: str) -> bytes:
        """A member's bytes, b"" where the song has none. ValueError, naming shard and key, if the checksum is wrong."""
        with self.open_member(row, member) as file:
            data = file.read()
        if len(data) != file.size or zlib.crc32(data) != self.songs[row][f"{member}_crc32"]:
            raise ValueError(f"{self.path(self.songs[row]['shard'])}: {member} of {self.key(row)} is damaged (crc32)")
        return data

    def open_member(self, row: int, member: str) -> OffsetReader:
        """A member as a file to read from; its checksum is not looked at. The caller closes it.

        ValueError, naming shard and key, if the tar is too short to hold it.
        """
        song = self.songs[row]
        offset, size = int(song[f"{member}_offset"]), int(song[f"{member}_bytes"])
        tar = open(self.path(song["shard"]), "rb")  # noqa: SIM115 - closed with the window
        if offset + size > os.fstat(tar.fileno()).st_size:
            tar.close()
            raise ValueError(f"{tar.name}: {member} of {self.key(row)} is damaged (the tar ends before it does)")
        return OffsetReader(tar, offset, size, owned=True)


def fingerprint_of(index: Mapping[str, Any]) -> str:
    """Of the songs and their order, whoever indexed them with which words: the same shards have the same fingerprint."""
    content = {name: value for name, value in index.items() if name != "made_by"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def index_bytes(folder: Path) -> bytes:
    """index.json, or ValueError where there is none."""
    if not folder.is_dir():
        raise ValueError(f"shard set {str(folder)!r} does not exist; give the folder that prepare or encode wrote")
    if not (folder / "index.json").is_file():
        raise ValueError(
            f"{str(folder)!r} is not a finished shard set (no index.json); run prepare (or encode) to its end"
        )
    return (folder / "index.json").read_bytes()


def open_songs(folder: Path, index: dict[str, Any]) -> np.ndarray:
    """songs.npy, mapped; ValueError if it is not the one that index.json speaks of."""
    path = folder / "songs.npy"
    if not path.is_file() or sha256_of(path) != index["songs_file"]["sha256"]:
        raise ValueError(f"{path} is not the file that index.json was written for; run prepare (or encode) again")
    songs = np.load(path, mmap_mode="r", allow_pickle=False)
    if songs.dtype != row_type(index["members"]) or len(songs) != index["songs"]:
        raise ValueError(
            f"{path}: {len(songs)} rows of {songs.dtype} do not fit index.json; run prepare (or encode) again"
        )
    return songs
