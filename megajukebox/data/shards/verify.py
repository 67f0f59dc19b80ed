"""One shard compared with its index: size, checksums, headers, rows.

Each finding is a line of text.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from megajukebox.common.errors import BadSampleError
from megajukebox.common.files import sha256_of
from megajukebox.common.untrusted_files import open_given
from megajukebox.data.shards.index import KEY, REQUIRED
from megajukebox.data.shards.shard_set import MEMBER_OF, ShardSet
from megajukebox.data.shards.tar_stream import TarStream

MAX_FINDINGS = 20  # reported of one shard; one broken disk would fill the screen


def check_shard(work: tuple[ShardSet, int]) -> list[str]:
    """What is wrong with one shard (`work` is the set and the shard's number), at most
    MAX_FINDINGS findings.
    """
    shards, number = work
    findings = list(islice(all_findings(shards, number), MAX_FINDINGS + 1))
    if len(findings) > MAX_FINDINGS:
        findings[-1] = "and more"
    return findings


def all_findings(shards: ShardSet, number: int) -> Iterator[str]:
    """Everything that is wrong with one shard."""
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
    yield from bad_headers(path, strict=set(shards.members) <= set(MEMBER_OF.values()))
    yield from bad_rows(shards, number)


def bad_headers(path: Path, strict: bool = True) -> Iterator[str]:
    """Members that training would not read, but another program might unpack: links, odd names,
    foreign extensions.

    Not `strict`: the set has members of a newer version, so an extension may be one that we do not
    know.
    """
    try:
        with open_given(path) as file:
            for member in TarStream(file):
                key, _, extension = member.name.partition(".")
                if not member.is_file:
                    yield f"{member.name!r} is not a plain file"
                elif not KEY.fullmatch(key) or (strict and extension not in MEMBER_OF):
                    yield f"{member.name!r} is not the name of a song's file"
    except (BadSampleError, OSError) as error:
        yield f"it is not a whole tar ({error})"


def bad_rows(shards: ShardSet, number: int) -> Iterator[str]:
    """Songs of this shard whose members are missing or damaged, or whose rows do not fit."""
    facts = shards.index["shards"][number]
    songs = np.flatnonzero(np.asarray(shards.songs["shard"]) == number)
    first = songs[0] if len(songs) else "-"
    if len(songs) != facts["songs"] or first not in (facts["first"], "-"):
        yield f"songs.npy has {len(songs)} songs from row {first} on, the index {facts['songs']}"
    for song in map(int, songs):
        try:
            check_song(shards, song)
        except (ValueError, OSError) as error:
            yield str(error)


def check_song(shards: ShardSet, song: int) -> None:
    """Raises BadSampleError if a member is missing or damaged, or the JSON belongs to another
    song.
    """
    facts = shards.read_facts(song)
    frames = int(shards.songs[song]["frames"])
    if facts.get("key") != shards.key(song) or facts.get("frames") != frames:
        raise BadSampleError(
            "json",
            f"the JSON of {shards.key(song)} speaks of {facts.get('key')!r}, {facts.get('frames')} frames",
        )
    for member in shards.members:
        if shards.has(song, member):
            shards.check_member(song, member)
            if member in MEMBER_OF.values():
                shards.member_extension(song, member)
        elif member in REQUIRED[shards.index["kind"]]:
            raise BadSampleError("missing", f"{shards.key(song)} has no {member}")
