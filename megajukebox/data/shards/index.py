"""index.json and songs.npy of a shard set, read and checked: nothing in them is trusted unseen."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megajukebox.common.files import sha256_of

FORMAT = 1
MEMBERS = {
    "songs": ("json", "audio", "lyrics"),
    "codes": ("json", "top", "middle", "bottom", "lyrics"),
    "windows": ("json", "window"),  # data/stream/teacher_dataset.py
}
KEY = re.compile(r"[A-Za-z0-9_-]{1,48}")
SHARD_NAME = re.compile(r"[A-Za-z0-9_-]+\.tar")
FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
SHAPE = {  # what every index.json has, and of which type
    "kind": str,
    "sample_rate": int,
    "members": list,
    "songs": int,
    "shards": list,
    "songs_file": dict,
    "vocabulary": dict,
}
SHARD_SHAPE = {"name": str, "bytes": int, "sha256": str, "songs": int, "first": int}


def row_type(members: Iterable[str]) -> np.dtype:
    """The type of one row of songs.npy."""
    fields = [("shard", "<u4"), ("key", "S48"), ("frames", "<u8")]
    for member in members:
        fields += [
            (f"{member}_offset", "<u8"),
            (f"{member}_bytes", "<u8"),
            (f"{member}_crc32", "<u4"),
        ]
    return np.dtype(fields)


def fingerprint_of(index: Mapping[str, Any]) -> str:
    """Of the songs and their order, whoever indexed them: the same shards have the same fingerprint."""
    content = {name: value for name, value in index.items() if name != "made_by"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def index_bytes(folder: Path) -> bytes:
    """index.json, or ValueError where there is none."""
    if not folder.is_dir():
        raise ValueError(
            f"shard set {str(folder)!r} does not exist; give the folder that prepare or encode wrote"
        )
    if not (folder / "index.json").is_file():
        raise ValueError(
            f"{str(folder)!r} is not a finished shard set (no index.json); run prepare (or encode) to its end"
        )
    return (folder / "index.json").read_bytes()


def read_index(data: bytes, where: str) -> dict[str, Any]:
    """index.json as a dict, or ValueError saying what in it is wrong."""
    try:
        index = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where}/index.json is not JSON ({error}); prepare the set again"
        ) from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        found, maker = (
            (index.get("format"), index.get("made_by")) if isinstance(index, dict) else (None, None)
        )
        raise ValueError(
            f"{where}/index.json: format {found!r} is not {FORMAT}, the one this version "
            f"reads; prepare the set again, or use the version that made it: {maker}"
        )
    if wrong := misfit(index):
        raise ValueError(f"{where}/index.json: {wrong}; prepare the set again")
    return index


def misfit(index: Mapping[str, Any]) -> str | None:
    """What is wrong with an index, or None. A shard's name is looked at when the shard is opened."""
    for field, kind in SHAPE.items():
        if not isinstance(index.get(field), kind):
            return f"{field} is {str(index.get(field))[:60]!r}, not a {kind.__name__}"
    if index["kind"] not in MEMBERS or tuple(index["members"]) != MEMBERS[index["kind"]]:
        return f"kind {index['kind']!r} with members {str(index['members'])[:60]} is not known"
    if index["sample_rate"] < 1:
        return f"sample_rate is {index['sample_rate']}"
    for shard in index["shards"]:
        if not isinstance(shard, dict):
            return "an entry of shards is not an object"
        for field, kind in SHARD_SHAPE.items():
            if not isinstance(shard.get(field), kind):
                return f"a shard's {field} is {str(shard.get(field))[:60]!r}"
    lyrics = index.get("lyrics_model")
    if lyrics and not (isinstance(lyrics, dict) and FILE_NAME.fullmatch(str(lyrics.get("name")))):
        return f"lyrics_model {str(lyrics)[:60]} names no file of this folder"
    for file in filter(None, (index["songs_file"], lyrics)):
        if not isinstance(file.get("sha256"), str):
            return f"{str(file)[:60]} has no sha256"
    return None


def open_songs(folder: Path, index: Mapping[str, Any], checked: bool = False) -> np.ndarray:
    """songs.npy, mapped; ValueError if it is not the one that index.json speaks of.

    `checked`: another process has compared its checksum already (0.1 s and more for a million songs).
    """
    path = folder / "songs.npy"
    if not path.is_file() or not (checked or sha256_of(path) == index["songs_file"].get("sha256")):
        raise ValueError(
            f"{path} is not the file that index.json was written for; run prepare (or encode) again"
        )
    try:
        songs = np.load(path, mmap_mode="r", allow_pickle=False)
    except (
        Exception
    ) as error:  # numpy's header parser fails in a dozen ways, all of them the file's fault
        raise ValueError(
            f"{path} is not an array of songs ({error}); run prepare (or encode) again"
        ) from None
    if (
        songs.dtype != row_type(index["members"])
        or songs.shape != (index["songs"],)
        or not len(songs)
    ):
        raise ValueError(
            f"{path}: {len(songs)} rows of {songs.dtype} do not fit index.json; run prepare (or encode) again"
        )
    if int(songs["shard"].max()) >= len(index["shards"]):
        raise ValueError(
            f"{path}: a song lies in shard {int(songs['shard'].max())}, of {len(index['shards'])}"
        )
    return songs
