"""The index of a shard set, written over its finished shards: songs.npy, then index.json.

shards/README.md has both.
"""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megajukebox.common.errors import UserError
from megajukebox.common.files import sha256_of, write_atomic
from megajukebox.common.untrusted_files import open_given, parse_json
from megajukebox.data.shards.index import FORMAT, MEMBERS, row_type
from megajukebox.data.shards.shard_set import COUNTED, COUNTED_OF_NOTES, finished_shard


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
    """Write songs.npy, then index.json, over the finished `shards` (names of tars, in order);
    returns the index.

    `kind` is "songs" or "codes" and decides the members, `lyrics_model` names a file in `folder`,
    `extra` goes into the index as it is (what codes say of their VQ-VAE).

    Raises:
        UserError: a shard is not finished, or there is none.
    """
    folder = Path(folder)
    filled = []
    for name in shards:
        shard = finished_shard(folder / name)
        if shard is None:
            raise UserError(
                f"{folder}: {name} is not finished; run the same command again to make it"
            )
        if shard["songs"]:
            filled.append(shard)
    if not filled:
        raise UserError(f"{folder}: no shard holds a song, so there is nothing to index")
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
        **vocabulary_of(folder, filled),
        "lyrics_model": None,
        **(extra or {}),
    }
    if lyrics_model:
        index["lyrics_model"] = {"name": lyrics_model, "sha256": sha256_of(folder / lyrics_model)}
    write_atomic(
        folder / "index.json", (json.dumps(index, indent=1, ensure_ascii=False) + "\n").encode()
    )
    return index


def song_rows(shards: list[dict[str, Any]], members: tuple[str, ...]) -> np.ndarray:
    """The rows of all songs; a member that a song does not have is 0 bytes at 0."""
    rows = []
    for number, shard in enumerate(shards):
        for song in shard["songs"]:
            row = [number, song["key"], song["frames"]]
            for member in members:
                row += song["members"].get(member, (0, 0, 0))
            rows.append(tuple(row))
    return np.array(rows, row_type(members))


def shard_table(shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """index.json's "shards"; "first" is the row of a shard's first song."""
    table = []
    first = 0
    for shard in shards:
        songs = len(shard["songs"])
        entry = {name: shard[name] for name in ("name", "bytes", "sha256")}
        table.append({**entry, "songs": songs, "first": first})
        first += songs
    return table


def vocabulary_of(folder: Path, shards: list[dict[str, Any]]) -> dict[str, Any]:
    """index.json's "vocabulary" (how many songs have each value, in alphabetical order) and "years".

    Both are counted over every <key>.json of the tars.
    """
    counters: dict[str, Counter[str]] = {name: Counter() for name in (*COUNTED, *COUNTED_OF_NOTES)}
    years = set()
    for shard in shards:
        with open_given(folder / shard["name"]) as tar:
            for song in shard["songs"]:
                offset, size, _ = song["members"]["json"]
                facts = parse_json(os.pread(tar.fileno(), size, offset))
                if "year" in facts:
                    years.add(facts["year"])
                for name, counter in counters.items():
                    values = facts.get(name) or []
                    counter.update([values] if isinstance(values, str) else values)
    vocabulary = {}
    for name, counter in counters.items():
        if counter or name in COUNTED:
            vocabulary[name] = dict(sorted(counter.items()))
    return {"vocabulary": vocabulary, "years": [min(years), max(years)] if years else None}


def write_songs(path: Path, songs: np.ndarray) -> dict[str, str]:
    """Write songs.npy; returns what index.json says of it."""
    with io.BytesIO() as file:
        np.save(file, songs, allow_pickle=False)
        data = file.getvalue()
    write_atomic(path, data)
    return {"name": path.name, "sha256": hashlib.sha256(data).hexdigest()}
