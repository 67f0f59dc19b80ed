"""What an audio file says of its song itself: names, genres, year, licence, and words.

    ID3 (MP3; in WAV and AIFF a chunk of it)   RIFF INFO (WAV)   Vorbis comments (FLAC, Vorbis, Opus), MP4, ASF by tinytag

A value that makes no sense, or cannot be decoded, is left out with a note: it was not written for us, so it must not cost
the song.
"""

import codecs
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from typing import Any, BinaryIO

from tinytag import TinyTag, TinyTagException

from megajukebox.common.errors import UserError
from megajukebox.conditioning.lrc import parse_lrc
from megajukebox.data.audio import OffsetReader
from megajukebox.data.ingest.id3 import (
    HEADER_BYTES,
    ID3V1_BYTES,
    MAX_TAG_BYTES,
    Id3Tags,
    genre_names,
    id3_size,
    read_id3,
    read_id3v1,
)
from megajukebox.data.ingest.source_song import checked
from megajukebox.records.ingest_notes import IngestNote, NoteKind

OF_TAGS = {"artist": "artist", "album": "album", "title": "title", "license": "licence"}
LYRICS_TAGS = ("syncedlyrics", "lyrics", "unsyncedlyrics", "unsynced lyrics")
RIFF_NAMES = {
    **{b"IART": "artist", b"IPRD": "album", b"INAM": "title", b"IGNR": "genre", b"ICRD": "date"},
    **{b"TITL": "title", b"YEAR": "date"},
}
AIFF_NAMES = {b"NAME": "title", b"AUTH": "artist"}
MAX_CHUNKS = 1000
MAX_INFO_BYTES = 1 << 20
UNKNOWN_SIZE = 0xFFFFFFFF  # of a chunk in RF64: it stands in ds64
UTF8_CODE_PAGE = 65001


@dataclass
class FileTags:
    """The tags of a file: texts by name, of which there may be several; lyrics, those with times first."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    lyrics: list[str] = field(default_factory=list)
    encoding: str | None = None  # of texts that were not UTF-8 and did not say in what they are

    def add(self, texts: Mapping[str, Sequence[str]]) -> None:
        """Take the fields that are not there yet."""
        for name, values in texts.items():
            written = [value for value in values if value.strip(" \t\r\n\0")]
            if written:
                self.texts.setdefault(name, written)

    def add_id3(self, found: Id3Tags) -> None:
        self.add(found.texts)
        self.lyrics += [*found.synced_lyrics, *found.lyrics]


def read_tags(file: BinaryIO) -> FileTags:
    """The tags of an open file. What is damaged is as good as missing.

    Raises:
        OSError: the file cannot be read.
    """
    tags = FileTags()
    size = file.seek(0, 2)
    head = bytes_at(file, 0, 12)
    id3_bytes = id3_size(head)
    if id3_bytes:
        tags.add_id3(read_id3(bytes_at(file, 0, min(id3_bytes, MAX_TAG_BYTES))))
        head = bytes_at(file, id3_bytes, 12)
    if head[8:12] == b"WAVE" or head[:4] == b"FORM":
        read_chunks(file, id3_bytes, head[:4] == b"FORM", tags)
    elif head[:4] in (b"fLaC", b"OggS") or head[4:8] == b"ftyp" or head[:2] == b"\x30\x26":
        read_by_tinytag(BufferedReader(OffsetReader(file, id3_bytes, size - id3_bytes)), tags)
    else:
        tags.add(read_id3v1(bytes_at(file, max(0, size - ID3V1_BYTES), ID3V1_BYTES)))
    return tags


def bytes_at(file: BinaryIO, position: int, size: int) -> bytes:
    """`size` bytes, fewer at the end of the file."""
    file.seek(position)
    return file.read(size)


def read_by_tinytag(file: BinaryIO, tags: FileTags) -> None:
    """Vorbis comments and the like; what tinytag cannot read has none."""
    try:
        found = TinyTag.get(file_obj=file, duration=False)
    except TinyTagException:
        return
    texts: dict[str, list[str]] = {}
    for name, values in found.as_dict().items():
        if isinstance(values, list):
            texts["date" if name == "year" else name] = [str(value) for value in values]
    tags.add(texts)
    for name in LYRICS_TAGS:
        tags.lyrics += texts.get(name, [])


# ---- chunks: RIFF, RF64, AIFF


def chunks(file: BinaryIO, start: int, big_endian: bool) -> Iterator[tuple[bytes, int, int]]:
    """(name, position of the content, its bytes) of the chunks of a file that begins at `start`."""
    position = start + 12
    data_bytes = None
    for _ in range(MAX_CHUNKS):
        head = bytes_at(file, position, 8)
        if len(head) < 8:
            return
        name = head[:4]
        size = int.from_bytes(head[4:], "big") if big_endian else int.from_bytes(head[4:], "little")
        if name == b"ds64":
            data_bytes = int.from_bytes(bytes_at(file, position + 16, 8), "little")
        if name == b"data" and size == UNKNOWN_SIZE and data_bytes is not None:
            size = data_bytes
        yield name, position + 8, size
        position += 8 + size + size % 2


def read_chunks(file: BinaryIO, start: int, big_endian: bool, tags: FileTags) -> None:
    """INFO and ID3 chunks; where both have a field, that of ID3, whose encoding is certain, counts."""
    infos: list[tuple[str, bytes]] = []
    code_page = 0
    for name, position, size in chunks(file, start, big_endian):
        if name.upper() == b"ID3 ":
            content = bytes_at(file, position, min(size, MAX_TAG_BYTES))
            if id3_size(content[:HEADER_BYTES]):
                tags.add_id3(read_id3(content))
        elif name == b"CSET":
            code_page = int.from_bytes(bytes_at(file, position, 2), "little")
        elif name == b"LIST" and bytes_at(file, position, 4) == b"INFO":
            info = bytes_at(file, position + 4, min(size - 4, MAX_INFO_BYTES))
            infos += info_texts(info)
        elif big_endian and name in AIFF_NAMES:
            infos.append((AIFF_NAMES[name], bytes_at(file, position, min(size, MAX_INFO_BYTES))))
    for field_name, data in infos:
        text, encoding = decoded_info(data, code_page)
        tags.encoding = tags.encoding or encoding
        tags.add({field_name: [text]})


def info_texts(info: bytes) -> Iterator[tuple[str, bytes]]:
    """(our name, bytes) of the texts in an INFO list."""
    position = 0
    while position + 8 <= len(info):
        size = int.from_bytes(info[position + 4 : position + 8], "little")
        name = RIFF_NAMES.get(info[position : position + 4])
        if name is not None:
            yield name, info[position + 8 : position + 8 + size].partition(b"\0")[0]
        position += 8 + size + size % 2


def decoded_info(data: bytes, code_page: int) -> tuple[str, str | None]:
    """(text, its encoding where it was neither UTF-8 nor announced): by the CSET chunk, as UTF-8, else as ISO 8859-1.

    The last is what RIFF (Multimedia Programming Interface 1.0, CSET) says of files without that chunk; most of today
    write UTF-8, which a text in ISO 8859-1 hardly ever is by accident.
    """
    if code_page:
        try:
            name = "utf-8" if code_page == UTF8_CODE_PAGE else codecs.lookup(f"cp{code_page}").name
            return data.decode(name, "replace"), None
        except LookupError:
            return "\ufffd", None
    try:
        return data.decode(), None
    except UnicodeDecodeError:
        return data.decode("latin-1"), "ISO 8859-1"


# ---- what the tags mean


def metadata_of_tags(tags: Mapping[str, str | Sequence[str]]) -> dict[str, Any]:
    """The tags of a file as fields of SongMetadata; what makes no sense is left out."""
    return checked_tags(tags)[0]


def checked_tags(
    tags: Mapping[str, str | Sequence[str]],
) -> tuple[dict[str, Any], list[str]]:
    """(fields of SongMetadata, why which tags are left out). Of several artists the first counts, of genres all."""
    lists = {
        name: [value] if isinstance(value, str) else list(value) for name, value in tags.items()
    }
    values: dict[str, Any] = {}
    for tag, name in OF_TAGS.items():
        if lists.get(tag):
            values[name] = lists[tag][0].strip("\0")
    genres: list[str] = []
    for text in lists.get("genre", ()):
        for part in re.split(r"[;\0]", text):
            genres += genre_names(part)
    values["genres"] = genres
    year = re.search(r"\b\d{4}\b", " ".join(lists.get("date", ())))
    if year:
        values["year"] = int(year[0])
    metadata: dict[str, Any] = {}
    left_out: list[str] = []
    for name, value in values.items():
        try:
            metadata |= checked({name: value}, "tags")
        except UserError as error:
            left_out.append(str(error))
    return metadata, left_out


@dataclass(frozen=True)
class SongTags:
    """What the tags of a song's file say, as `prepare` takes it."""

    metadata: dict[str, Any] = field(default_factory=dict)  # fields of SongMetadata
    lyrics: str | None = None
    lyrics_kind: str | None = None  # "txt" plain, "lrc" timed
    notes: tuple[IngestNote, ...] = ()


def song_tags(file: BinaryIO, song: str) -> SongTags:
    """The tags of the open file of `song`, with notes."""
    tags = read_tags(file)
    metadata, left_out = checked_tags(tags.texts)
    notes = [IngestNote(song, NoteKind.bad_tag, reason) for reason in left_out]
    if tags.encoding and metadata:
        detail = f"tags without an encoding are read as {tags.encoding}; write them in UTF-8"
        notes.append(IngestNote(song, NoteKind.text_encoding, detail))
    for text in tags.lyrics:
        plain, words = parse_lrc(text)
        if plain.strip():
            kind = "lrc" if words else "txt"
            return SongTags(metadata, text, kind, tuple(notes))
    return SongTags(metadata, notes=tuple(notes))
