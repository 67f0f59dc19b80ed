"""Shard sets: writing tar shards, indexing them, and opening a set by its folder. shards/README.md
has the formats.

    <name>.tar         samples; under this name only when complete
    <name>.rows.json   what is in that tar; written after it, so where it lies the shard is finished
    songs.npy          one row a song: shard, key, frames, and offset, bytes and crc32 of every member
    index.json         the rest, written last: a folder with it is a finished set

Song shards and code shards are written and read by the same functions; only their members differ.
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megajukebox.common.errors import BadSampleError, UserError
from megajukebox.common.files import HashingFile, atomic_open, write_atomic
from megajukebox.common.untrusted_files import open_given, parse_json, read_given
from megajukebox.data.audio import OffsetReader
from megajukebox.data.shards.index import (
    FORMAT,
    KEY,
    SHARD_NAME,
    SONGS_FILE,
    fingerprint_of,
    index_bytes,
    open_songs,
    read_index,
)
from megajukebox.data.shards.local_cache import RangeReader, ShardCache, fetch_index, fetch_small
from megajukebox.data.shards.remote import RemoteConfig, ShardSource
from megajukebox.data.shards.source_url import token_of_environment
from megajukebox.data.shards.transports import is_url

MEMBER_OF = {  # what follows the key's dot in the tar -> member
    "json": "json",
    "flac": "audio",
    "wav": "audio",
    "txt": "lyrics",
    "lrc": "lyrics",
    "top.npy": "top",
    "middle.npy": "middle",
    "bottom.npy": "bottom",
    "npz": "window",
    "notes.npz": "notes",
}
# The fields of <key>.json that have vocabularies.
COUNTED = ("artist", "genres", "moods", "keywords", "language")
COUNTED_OF_NOTES = ("instruments",)  # of sets that have any
TAR_BLOCK = 512
# Codes need no more than audio.
MAX_MEMBER_BYTES = {
    "json": 1 << 22,
    "lyrics": 1 << 22,
    "window": 1 << 28,
    "notes": 1 << 24,
    "audio": 4 << 30,
}
MAX_ROWS_BYTES = 1 << 30  # of what our own writer wrote beside a tar
CHECKED_AT_ONCE = 1 << 20  # bytes of a member that are held while its checksum is computed


@dataclass(frozen=True)
class ShardSample:
    """One song of a shard."""

    key: str  # [A-Za-z0-9_-]{1,48}
    frames: int  # audio samples per channel
    members: dict[str, bytes]  # by what follows the key's dot, "json" first; the keys of MEMBER_OF


# ---- writing a shard


def write_shard(
    path: str | Path, samples: Iterable[ShardSample], notes: Any = None
) -> dict[str, Any]:
    """Write `samples` to the tar at `path`, then its rows beside it; returns the rows. Same
    samples, same bytes.

    `notes` (JSON) is kept in the rows; it is read when the samples are exhausted, so they may fill
    it as they come. Killed at any point, this leaves nothing under the real name, or a complete tar
    that the next run writes again. Without a single sample there is no tar, only rows that say so.
    """
    path = Path(path)
    # from here until the new rows are there, the shard is not finished
    rows_path(path).unlink(missing_ok=True)
    with atomic_open(path) as file:
        hashed = HashingFile(file)
        rows = list(written(samples, hashed))
    if not rows:
        path.unlink()
    shard = {
        "format": FORMAT,
        "name": path.name,
        "bytes": hashed.bytes,
        "sha256": hashed.sha256.hexdigest(),
        "notes": notes,
        "songs": rows,
    }
    write_atomic(rows_path(path), (json.dumps(shard) + "\n").encode())
    return shard


def finished_shard(path: str | Path) -> dict[str, Any] | None:
    """The rows of the shard at `path` if it is finished and its size is right, else None: it is
    to be written again.
    """
    path = Path(path)
    if not rows_path(path).is_file():
        return None
    shard = json.loads(read_given(rows_path(path), MAX_ROWS_BYTES))
    if shard["songs"] and (not path.is_file() or path.stat().st_size != shard["bytes"]):
        return None
    return shard


def rows_path(path: Path) -> Path:
    return path.with_suffix(".rows.json")


def written(samples: Iterable[ShardSample], file: HashingFile) -> Iterator[dict[str, Any]]:
    """Writes each sample to the tar; yields its row: {"key", "frames", "members": {name:
    [offset, bytes, crc32]}}.
    """
    # webdataset imports torch, which the processes that only read songs should not pay for
    from webdataset.writer import TarWriter

    with TarWriter(
        file, encoder=False, mtime=0, user="megajukebox", group="megajukebox", mode=0o644
    ) as tar:
        for sample in samples:
            # The writers of samples are our own code, so what is wrong here is a bug.
            assert KEY.fullmatch(sample.key), f"key {sample.key!r} does not match {KEY.pattern}"
            assert next(iter(sample.members)) == "json", (
                f"{sample.key}: the JSON comes first, not {list(sample.members)}"
            )
            names = {MEMBER_OF[extension] for extension in sample.members}
            assert len(names) == len(sample.members), (
                f"{sample.key}: two members of one kind in {list(sample.members)}"
            )
            members = {}
            # One call for each member: in one call the writer would sort them, and the JSON would
            # not come first.
            for extension, data in sample.members.items():
                tar.write({"__key__": sample.key, extension: data})
                offset = tar.tarstream.offset - -(-len(data) // TAR_BLOCK) * TAR_BLOCK
                members[MEMBER_OF[extension]] = [offset, len(data), zlib.crc32(data)]
            yield {"key": sample.key, "frames": sample.frames, "members": members}


# ---- opening a set


class ShardSet:
    """A finished shard set, opened by its folder or URL. Only the index is read; songs.npy is
    mapped, tars stay closed.

    source       what it was opened by, without what a URL keeps secret
    folder       where index.json, songs.npy and lyrics.model lie on this machine
    index        index.json as a dict
    songs        songs.npy: structured array [songs], in the order of the shards; song n is row n
    members      what its songs may have; those of a newer version among them
    fingerprint  sha256 of what index.json says but for `made_by`, hex: what other outputs say they were made from
    """

    def __init__(
        self, source: str | Path, remote: RemoteConfig | None = None, checked: Path | None = None
    ) -> None:
        """`remote` says how to read what lies behind a URL; `checked` is the folder of a set
        that was opened before.
        """
        self._opened_by = source
        self._remote = remote or RemoteConfig(token=token_of_environment())
        site = ShardSource(str(source), self._remote) if is_url(source) else None
        self.source = site.shown if site else str(source)
        if site and not checked:
            self.folder, data = fetch_index(site)
        else:
            self.folder = checked or Path(source)
            data = index_bytes(self.folder)
        self.index: dict[str, Any] = read_index(data, self.source)
        self.fingerprint = fingerprint_of(self.index)
        if site and site.wanted not in (None, self.fingerprint):
            raise UserError(
                f"{self.source} has an index of fingerprint {self.fingerprint}, and #sha256={site.wanted} is wanted: "
                "the set was prepared anew or exchanged; ask whoever prepared it, or write the new fingerprint"
            )
        if site and not checked:
            small = [self.index["songs_file"] | {"name": SONGS_FILE}]
            if self.index.get("lyrics_model"):
                small.append(self.index["lyrics_model"])
            fetch_small(site, self.folder, small)
        self.members: tuple[str, ...] = tuple(self.index["members"])
        self.songs = open_songs(
            self.folder, self.index, checked=site is not None or checked is not None
        )
        self.cache = ShardCache(site, self.folder, self.index["shards"]) if site else None

    def __len__(self) -> int:
        return len(self.songs)

    def __reduce__(self) -> tuple[type["ShardSet"], tuple[str | Path, RemoteConfig, Path]]:
        """Other processes open the folder again: pickling the map would send all of it."""
        return ShardSet, (self._opened_by, self._remote, self.folder)

    def path(self, shard: int) -> Path:
        """The tar number `shard` of index["shards"]; that of a remote set may not be there yet."""
        name = self.index["shards"][shard]["name"]
        if not SHARD_NAME.fullmatch(name):
            raise BadSampleError(
                "bad_name",
                f"{self.source}/index.json: shard name {name!r} is not the name of a tar in this folder",
            )
        return self.folder / name

    def key(self, song: int) -> str:
        return self.songs[song]["key"].decode(errors="backslashreplace")

    def has(self, song: int, member: str) -> bool:
        """Whether a song has this member; in a set older than the member none has."""
        return member in self.members and bool(self.songs[song][f"{member}_bytes"])

    def member_extension(self, song: int, member: str) -> str:
        """What follows the key's dot in the tar, e.g. "flac" or "lrc"; read from the tar's own
        header.

        Raises:
            BadSampleError: that is not an extension of such a member.
        """
        shard = int(self.songs[song]["shard"])
        offset = int(self.songs[song][f"{member}_offset"])
        with self._window(shard, max(0, offset - TAR_BLOCK), 100, member, song) as file:
            name = file.read(100).rstrip(b"\0").decode(errors="replace")
        extension = name.partition(".")[2]
        if MEMBER_OF.get(extension) != member:
            raise BadSampleError(
                "other", f"{self.path(shard)}: {member} of {self.key(song)} is called {name!r}"
            )
        return extension

    def read_member(self, song: int, member: str) -> bytes:
        """A member's bytes, b"" where the song has none.

        Raises BadSampleError if the checksum is wrong.
        """
        if member not in self.members:
            return b""
        with self.open_member(song, member) as file:
            data = file.read()
        self._compare(song, member, len(data), zlib.crc32(data))
        return data

    def check_member(self, song: int, member: str) -> None:
        """Raises BadSampleError if the checksum is wrong; never holds more than CHECKED_AT_ONCE
        bytes of it.
        """
        crc = 0
        size = 0
        with self.open_member(song, member) as file:
            while block := file.read(CHECKED_AT_ONCE):
                crc = zlib.crc32(block, crc)
                size += len(block)
        self._compare(song, member, size, crc)

    def _compare(self, song: int, member: str, size: int, crc: int) -> None:
        row = self.songs[song]
        if size != row[f"{member}_bytes"] or crc != row[f"{member}_crc32"]:
            raise BadSampleError(
                "damaged",
                f"{self.path(row['shard'])}: {member} of {self.key(song)} is damaged (crc32)",
            )

    def read_facts(self, song: int) -> dict[str, Any]:
        """<key>.json. Raises BadSampleError if the song has none, or it is not an object."""
        if not self.has(song, "json"):
            raise BadSampleError("json", f"{self.key(song)} has no JSON")
        data = self.read_member(song, "json")
        try:
            facts = parse_json(data)
        except ValueError as error:
            raise BadSampleError(
                "json", f"the JSON of {self.key(song)} cannot be read ({error})"
            ) from None
        if not isinstance(facts, dict):
            raise BadSampleError(
                "json", f"the JSON of {self.key(song)} is no object but {str(facts)[:40]!r}"
            )
        return facts

    def open_member(self, song: int, member: str) -> OffsetReader | RangeReader:
        """A member as a file to read from; its checksum is not compared. The caller closes it.

        Raises:
            BadSampleError: naming shard and key, for a key that is no name, for a member of absurd
                size, and if the
                tar is too short to hold it.
            OSError: a remote shard cannot be fetched.
        """
        row = self.songs[song]
        offset = int(row[f"{member}_offset"])
        size = int(row[f"{member}_bytes"])
        key = self.key(song)
        if not KEY.fullmatch(key):
            raise BadSampleError(
                "bad_name", f"key {key!r} is not a name of letters, digits, - and _"
            )
        if size > MAX_MEMBER_BYTES.get(member, MAX_MEMBER_BYTES["audio"]):
            raise BadSampleError("too_large", f"{member} of {key} is too large: {size} bytes")
        return self._window(int(row["shard"]), offset, size, member, song)

    def prefetch(self, shards: Iterable[int]) -> None:
        """Fetch remote shards that will be needed soon, in the background."""
        if self.cache:
            self.cache.prefetch(shards)

    def _window(
        self, shard: int, offset: int, size: int, member: str, song: int
    ) -> OffsetReader | RangeReader:
        path = self.path(shard)
        if self.cache:
            return self.cache.open(shard, offset, size)
        tar = open_given(path)  # a link in the cache of Hugging Face, so links are followed
        if offset + size > os.fstat(tar.fileno()).st_size:
            tar.close()
            raise BadSampleError(
                "truncated",
                f"{path}: {member} of {self.key(song)} is damaged (the tar ends before it does)",
            )
        return OffsetReader(tar, offset, size, owned=True)
