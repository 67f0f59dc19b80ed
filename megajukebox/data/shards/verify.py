"""One shard compared with its index: size, checksums, headers, rows. What is found is said in words."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megajukebox.common.files import sha256_of
from megajukebox.data.shards.index import KEY
from megajukebox.data.shards.shard_set import MEMBER_OF, ShardSet

MANY = 20  # findings of one shard that are told; one broken disk would fill the screen


def check_shard(work: tuple[ShardSet, int]) -> list[str]:
    """What is wrong with one shard (`work` is the set and the shard's number), at most MANY findings."""
    shards, number = work
    found: list[str] = []
    for finding in findings(shards, number):
        if len(found) == MANY:
            return [*found, "and more"]
        found.append(finding)
    return found


def findings(shards: ShardSet, number: int) -> Iterator[str]:
    facts = shards.index["shards"][number]
    try:
        path = shards.path(number)
        if shards.cache:
            shards.cache.bring(number)
        size = path.stat().st_size
    except (ValueError, OSError) as error:
        yield str(error)
        return
    if size != facts["bytes"]:
        yield f"it has {size} bytes, the index says {facts['bytes']}"
    if sha256_of(path) != facts["sha256"]:
        yield "its sha256 is not the one in the index"
    yield from bad_headers(path)
    yield from bad_rows(shards, number)


def bad_headers(path: Path) -> Iterator[str]:
    """Members that training would not read, but another program might unpack: links, odd names, foreign endings."""
    try:
        with tarfile.open(path, "r:", errorlevel=0) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                if not member.isreg():
                    yield f"{member.name!r} is not a plain file"
                elif not KEY.fullmatch(key) or extension not in MEMBER_OF:
                    yield f"{member.name!r} is not the name of a song's file"
    except (
        tarfile.TarError,
        OSError,
        ValueError,
        EOFError,
        OverflowError,
        RecursionError,
    ) as error:
        yield f"it is not a whole tar ({error})"


def bad_rows(shards: ShardSet, number: int) -> Iterator[str]:
    """Songs of this shard whose members are missing or damaged, or whose rows do not fit."""
    facts = shards.index["shards"][number]
    rows = np.flatnonzero(np.asarray(shards.songs["shard"]) == number)
    if len(rows) != facts["songs"] or (len(rows) and rows[0] != facts["first"]):
        yield f"songs.npy has {len(rows)} songs from row {rows[0] if len(rows) else '-'} on, the index {facts['songs']}"
    for row in map(int, rows):
        try:
            check_song(shards, row)
        except (ValueError, OSError) as error:
            yield str(error)


def check_song(shards: ShardSet, row: int) -> None:
    """ValueError if a member is damaged, or the JSON speaks of another song."""
    told = shards.read_facts(row)
    if told.get("key") != shards.key(row) or told.get("frames") != int(shards.songs[row]["frames"]):
        raise ValueError(
            f"the JSON of {shards.key(row)} speaks of {told.get('key')!r}, {told.get('frames')} frames"
        )
    for member in shards.members:
        if shards.has(row, member):
            shards.check_member(row, member)
            shards.member_extension(row, member)
        elif member != "lyrics":
            raise ValueError(f"{shards.key(row)} has no {member}")
