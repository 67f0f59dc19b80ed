"""index.json and songs.npy of a shard set, read and checked: nothing in them is trusted unseen."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from megajukebox.common.errors import UserError
from megajukebox.common.files import sha256_of_open
from megajukebox.common.untrusted_files import (
    UnsafeFileError,
    open_given,
    parse_json,
    read_given,
)

FORMAT = 1
SONGS_FILE = "songs.npy"
NOTES_TIME_RATE = 100  # "samples" a second of note shards: their frames are hundredths of a second
MAX_INDEX_BYTES = 256 << 20  # 1.2 million songs need some tens of millions
# Objects, lists and entries of index.json; each costs 60 bytes and more once it is read, `[],` 3 bytes on the disk.
MAX_INDEX_VALUES = 8_000_000
MAX_LYRICS_MODEL_BYTES = 256 << 20
# The members of a song that this version writes, by kind of set. A set may lack those that did not
# exist when it was
# written, and may have others that a newer version wrote; what it cannot do without is REQUIRED.
MEMBERS = {
    "songs": ("json", "audio", "lyrics"),
    "codes": ("json", "top", "middle", "bottom", "lyrics"),
    "windows": ("json", "window"),  # data/stream/teacher_dataset.py
    "notes": ("json", "notes"),  # data/ingest/note_pieces.py
}
REQUIRED = {
    "songs": {"json", "audio"},
    "codes": {"json", "top", "middle", "bottom"},
    "windows": {"json", "window"},
    "notes": {"json", "notes"},
}
MEMBER_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
KEY = re.compile(r"[A-Za-z0-9_-]{1,48}")
SHARD_NAME = re.compile(r"[A-Za-z0-9_-]+\.tar")
FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
FIELD_TYPES = {  # what every index.json has, and of which type
    "kind": str,
    "sample_rate": int,
    "members": list,
    "songs": int,
    "shards": list,
    "songs_file": dict,
    "vocabulary": dict,
}
SHARD_FIELD_TYPES = {"name": str, "bytes": int, "sha256": str, "songs": int, "first": int}


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
    """Of the songs and their order, whoever indexed them: the same shards have the same
    fingerprint.
    """
    content = {name: value for name, value in index.items() if name != "made_by"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def index_bytes(folder: Path) -> bytes:
    """index.json. Raises UserError where there is none."""
    unindexed = (
        ", or stream song tars without an index by training.vqvae.loader.data_mode=unindexed"
    )
    if not folder.is_dir():
        raise UserError(
            f"shard set {str(folder)!r} does not exist; give the folder that prepare or encode wrote"
            f"{unindexed if '.tar' in folder.name else ''}"
        )
    if not (folder / "index.json").is_file():
        has_tars = any(folder.glob("*.tar*")) and not any(folder.glob("*.rows.json"))
        raise UserError(
            f"{str(folder)!r} is not a finished shard set (no index.json); run prepare (or encode) to its end"
            f"{unindexed if has_tars else ''}"
        )
    try:
        return read_given(folder / "index.json", MAX_INDEX_BYTES)
    except OSError as error:
        raise UserError(f"{folder}/index.json cannot be read: {error.strerror}") from error


def read_index(data: bytes, where: str) -> dict[str, Any]:
    """index.json as a dict. Raises UserError naming what is wrong in it."""
    values = sum(map(data.count, (b"[", b"{", b",")))
    if values > MAX_INDEX_VALUES:
        raise UserError(
            f"{where}/index.json holds {values} values; at most {MAX_INDEX_VALUES} are read; prepare the set in parts"
        )
    try:
        index = parse_json(data)
    except ValueError as error:
        raise UserError(
            f"{where}/index.json is not JSON ({error}); prepare the set again"
        ) from None
    if not isinstance(index, dict):
        index = {}
    if index.get("format") != FORMAT:
        raise UserError(
            f"{where}/index.json: format {index.get('format')!r} is not {FORMAT}, the one this version "
            f"reads; prepare the set again, or use the version that made it: {index.get('made_by')}"
        )
    mistake = index_mistake(index)
    if mistake:
        raise UserError(f"{where}/index.json: {mistake}; prepare the set again")
    return index


def index_mistake(index: Mapping[str, Any]) -> str | None:
    """What is wrong with an index, or None. A shard's name is checked when the shard is opened."""
    for field, kind in FIELD_TYPES.items():
        if not isinstance(index.get(field), kind):
            return f"{field} is {str(index.get(field))[:60]!r}, not a {kind.__name__}"
    members = index["members"]
    # Each once, among them those that a set of this kind cannot do without.
    are_names = all(isinstance(name, str) and MEMBER_NAME.fullmatch(name) for name in members)
    are_members = are_names and len(set(members)) == len(members)
    if index["kind"] not in MEMBERS or not are_members or not REQUIRED[index["kind"]] <= {*members}:
        return f"kind {index['kind']!r} with members {str(members)[:60]} is not known"
    if index["sample_rate"] < 1:
        return f"sample_rate is {index['sample_rate']}"
    for shard in index["shards"]:
        if not isinstance(shard, dict):
            return "an entry of shards is not an object"
        for field, kind in SHARD_FIELD_TYPES.items():
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
    """songs.npy, mapped. Raises UserError if it is not the one that index.json names.

    `checked`: another process has compared its checksum already (0.1 s and more for a million
    songs).
    """
    path = folder / SONGS_FILE
    not_it = UserError(
        f"{path} is not the file that index.json was written for; run prepare (or encode) again"
    )
    try:
        file = open_given(path)
    except (FileNotFoundError, IsADirectoryError, UnsafeFileError):
        raise not_it from None
    with file:
        wanted = index["songs_file"].get("sha256")
        if not checked and sha256_of_open(file) != wanted:
            raise not_it
        songs = mapped(file, path)
    fits = songs.dtype == row_type(index["members"]) and songs.shape == (index["songs"],)
    if not fits or not songs.size:
        raise UserError(
            f"{path}: {songs.size} rows of {songs.dtype} do not fit index.json; run prepare (or encode) again"
        )
    if int(songs["shard"].max()) >= len(index["shards"]):
        raise UserError(
            f"{path}: a song lies in shard {int(songs['shard'].max())}, of {len(index['shards'])}"
        )
    return songs


def mapped(file: BinaryIO, path: Path) -> np.ndarray:
    """The array of an open .npy file, mapped. UserError if it is none."""
    file.seek(0)
    try:
        if npy_format.read_magic(file) != (1, 0):
            raise ValueError("its version is not 1.0")
        shape, is_fortran, dtype = npy_format.read_array_header_1_0(file)
        if dtype.hasobject or len(shape) != 1 or shape[0] < 1:
            raise ValueError(f"{shape} values of {dtype}")
        return np.memmap(file, dtype, "r", file.tell(), shape, "F" if is_fortran else "C")  # type: ignore[call-overload]
    except Exception as error:
        # numpy's header parser fails in a dozen ways, all of them the file's fault
        raise UserError(
            f"{path} is not an array of songs ({error}); run prepare (or encode) again"
        ) from None
