"""What the user has: audio files, their metadata and lyrics, in a folder or by a manifest (JSONL
or CSV).
"""

import contextlib
import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import (
    open_given,
    open_inside,
    parse_json,
    read_given,
    read_inside,
)

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
LYRICS_SUFFIXES = (".lrc", ".txt")  # where a song has both, the timed ones count
MAX_BESIDE = 4 << 20  # bytes of a file beside a song
MAX_MANIFEST = 1 << 30  # bytes
MAX_LYRICS = 200_000  # characters; a longer text beside a song is not its lyrics


@dataclass(frozen=True)
class SourceSong:
    """One song on the way in. `refusal` says why it cannot be used, `notes` what was ignored."""

    path: Path
    name: str  # in reports: its path below the folder, or as the manifest has it
    metadata: dict[str, Any] = field(default_factory=dict)  # the known fields of SongMetadata
    lyrics: str | None = None
    lyrics_kind: str | None = None  # "txt" plain, "lrc" timed
    refusal: str | None = None
    notes: tuple[str, ...] = ()
    within: tuple[Path, Path] | None = None  # (folder, path in it) that are opened, past no link

    def open(self) -> BinaryIO:
        """The audio, open. Of a folder it is what was found there: nothing can be exchanged for a link since.

        Raises:
            OSError: it is gone, or no regular file.
        """
        return open_inside(*self.within) if self.within else open_given(self.path)


def as_list(value: Any) -> Any:
    """`"rock; pop"` -> ["rock", "pop"]; lists as they are.

    Empty entries go, order stays, repeats go.
    """
    parts = value.split(";") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        return value
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


Text = Annotated[str, Field(max_length=1000)]
Labels = Annotated[list[Text], BeforeValidator(as_list)]


class SongMetadata(BaseModel):
    """What may be known of a song. Every field is optional; other fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    artist: Text | None = None
    album: Text | None = None
    title: Text | None = None
    genres: Labels | None = None
    year: Annotated[int, Field(ge=0, le=9999)] | None = None
    moods: Labels | None = None
    keywords: Labels | None = None
    language: Text | None = None
    licence: Text | None = None


COLUMNS = ("path", *SongMetadata.model_fields, "lyrics", "lyrics_path")


def find_songs(source: str | Path, follow_links: bool = False) -> list[SourceSong]:
    """The songs in a folder (in order of their paths) or in a manifest (in its order).

    In a folder, a mistake in the files beside one song only costs that song: it gets a `refusal`. So does a link that
    leaves the folder, without `follow_links`: whoever put it there may mean a file that is nobody's song. What a
    manifest names is read wherever it lies.

    Raises:
        UserError: the source is missing or empty, or there is a mistake in a manifest.
    """
    source = Path(source)
    if not source.exists():
        raise UserError(
            f"source {str(source)!r} does not exist; give a folder of audio files or a .jsonl/.csv manifest"
        )
    if source.is_dir():
        paths = sorted(audio_files(source), key=lambda path: path.as_posix())
        songs = [song_with_files_beside(source, path, follow_links) for path in paths]
    else:
        rows = {".jsonl": jsonl_rows, ".csv": csv_rows}.get(source.suffix.lower())
        if rows is None:
            raise UserError(
                f"manifest {str(source)!r} is neither .jsonl nor .csv; rename or convert it"
            )
        songs = [song_of_row(source.parent, where, row) for where, row in rows(source)]
    if not songs:
        wanted = f"audio files ({', '.join(SUFFIXES)})" if source.is_dir() else "lines"
        raise UserError(
            f"source {str(source)!r} holds no {wanted}; put songs there or give another source"
        )
    return songs


# ---- a folder


def audio_files(folder: Path) -> Iterator[Path]:
    """Audio files below `folder`, but no hidden ones, and no `<name>.stems` folders: parts of a
    song.
    """
    for parent, folders, names in os.walk(folder):
        # os.walk goes on into what is left in this list
        folders[:] = [f for f in folders if not f.startswith(".") and not f.endswith(".stems")]
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(parent, name)


def song_with_files_beside(folder: Path, path: Path, follow_links: bool = False) -> SourceSong:
    """The song at `path` with its `<name>.json` and `<name>.lrc` or `<name>.txt`, or its
    refusal.

    Fields of the JSON that SongMetadata does not have are ignored, with a note.
    """
    # a name that is not UTF-8 must still fit into reports
    song = SourceSong(path, os.fsencode(path.relative_to(folder)).decode("utf-8", "replace"))
    if not follow_links:
        try:
            song = replace(song, within=place_within(folder, path))
        except UserError as error:
            return replace(song, refusal=f"link: {error}")

    def text_beside(file: Path) -> str:
        if follow_links:
            return text_of(file, read_given(file, MAX_BESIDE))
        return text_of(file, read_inside(*place_within(folder, file), MAX_BESIDE))

    sidecar = path.with_suffix(".json")
    try:
        if sidecar.is_file():
            known = json_object(text_beside(sidecar), sidecar.name)
            unknown = sorted(set(known) - set(SongMetadata.model_fields))
            for name in unknown:
                del known[name]
            notes = (f"{sidecar.name}: ignored {', '.join(unknown)}",) if unknown else ()
            song = replace(song, metadata=checked(known, sidecar.name), notes=notes)
        for suffix in LYRICS_SUFFIXES:
            lyrics = path.with_suffix(suffix)
            if lyrics.is_file():
                return with_lyrics(song, text_beside(lyrics), suffix[1:], lyrics.name)
        return song
    except (UserError, OSError) as error:
        return replace(song, refusal=f"bad metadata: {error}")


def place_within(folder: Path, path: Path) -> tuple[Path, Path]:
    """(folder, path in it) of what `path` leads to, both without links.

    Raises:
        UserError: it is a link that leaves the folder.
    """
    root = folder.resolve()
    try:
        file = path.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise UserError(f"{path.name} cannot be followed ({error})") from None
    if not file.is_relative_to(root):
        raise UserError(
            f"{path.name} is a link that leaves the folder; put the file there, or give --follow-links"
        )
    return root, file.relative_to(root)


# ---- a manifest: one song a line of a .jsonl, a row of a .csv


def jsonl_rows(manifest: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of every line that is not blank."""
    # not splitlines: a JSON string may hold U+2028 and its like, which only look like the end of a
    # line
    for number, line in enumerate(
        text_of(manifest, read_given(manifest, MAX_MANIFEST)).split("\n"), start=1
    ):
        if line.strip():
            where = f"{manifest.name} line {number}"
            yield where, json_object(line, where)


def csv_rows(manifest: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of every row; empty cells are missing fields."""
    reader = csv.DictReader(
        io.StringIO(text_of(manifest, read_given(manifest, MAX_MANIFEST)), newline=""), restkey=""
    )
    refuse_unknown(reader.fieldnames or (), f"{manifest.name} line 1")
    try:
        rows = [(f"{manifest.name} line {reader.line_num}", row) for row in reader]
    except csv.Error as error:
        raise UserError(
            f"{manifest.name} line {reader.line_num}: not valid CSV ({error})"
        ) from error
    for where, row in rows:
        if row.pop("", None):
            raise UserError(
                f"{where}: more cells than the header has columns; quote cells that hold commas"
            )
        yield where, {name: cell for name, cell in row.items() if cell and cell.strip()}


def refuse_unknown(names: Iterable[str], where: str) -> None:
    for name in names:
        if name not in COLUMNS:
            raise UserError(
                f"{where}: unknown field {name!r}; the known ones are {', '.join(COLUMNS)}"
            )


def song_of_row(folder: Path, where: str, row: dict[str, Any]) -> SourceSong:
    """The song of one manifest row; relative paths start at `folder`, where the manifest lies.

    Its lyrics are given inline or as `lyrics_path`.
    """
    refuse_unknown(row, where)
    path = existing(folder, where, "path", row.get("path"))
    metadata = {name: row[name] for name in row if name in SongMetadata.model_fields}
    song = SourceSong(path, str(row["path"]), checked(metadata, where))
    if row.get("lyrics_path") is None:
        return with_lyrics(song, row.get("lyrics") or "", "txt", where)
    if row.get("lyrics") is not None:
        raise UserError(f"{where}: both 'lyrics' and 'lyrics_path' are given; keep one of them")
    lyrics = existing(folder, where, "lyrics_path", row["lyrics_path"])
    suffix = lyrics.suffix.lower()
    if suffix not in LYRICS_SUFFIXES:
        raise UserError(
            f"{where}: field 'lyrics_path' is {str(lyrics)!r}; "
            "lyrics are .txt (plain) or .lrc (timed) files"
        )
    text = text_of(lyrics, read_given(lyrics, MAX_BESIDE))
    return with_lyrics(song, text, suffix[1:], f"{where}: {lyrics.name}")


def existing(folder: Path, where: str, name: str, value: Any) -> Path:
    """The file that field `name` names."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(
            f"{where}: field {name!r} is {value!r}; give the path of a file, from the manifest's folder"
        )
    path = folder / value.strip()
    if not path.is_file():
        raise UserError(f"{where}: field {name!r} is {value!r}, but there is no file {str(path)!r}")
    return path


# ---- the tags of an audio file

OF_TAGS = {
    "artist": "artist",
    "album": "album",
    "title": "title",
    "genre": "genres",
    "license": "licence",
}


def metadata_of_tags(tags: Mapping[str, str]) -> dict[str, Any]:
    """The tags of a file (`audio.tags`) as fields of SongMetadata.

    A value that makes no sense is left out: it was not written for us, so it must not cost the
    song.
    """
    values: dict[str, Any] = {name: tags[tag] for tag, name in OF_TAGS.items() if tag in tags}
    if re.fullmatch(r"[\s()\d]*", values.get("genres", "")):  # an ID3v1 genre number
        values.pop("genres", None)
    year = re.search(r"\b\d{4}\b", tags.get("date", ""))
    if year:
        values["year"] = int(year[0])
    metadata: dict[str, Any] = {}
    for name, value in values.items():
        with contextlib.suppress(UserError):
            metadata |= checked({name: value}, "tags")
    return metadata


# ---- checks shared by all


def checked(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The known metadata, in the order of SongMetadata's fields; what is empty counts as
    missing.
    """
    try:
        metadata = SongMetadata.model_validate(values).model_dump()
    except ValidationError as error:
        mistake = error.errors()[0]
        name = mistake["loc"][0]
        way_out = mistake["msg"][0].lower() + mistake["msg"][1:]
        raise UserError(
            f"{where}: field {name!r} is {mistake['input']!r}; {way_out}, or leave the field out"
        ) from error
    return {name: value for name, value in metadata.items() if value not in (None, "", [])}


def with_lyrics(song: SourceSong, lyrics: Any, kind: str, where: str) -> SourceSong:
    """`song` with these lyrics; blank ones are none."""
    if not isinstance(lyrics, str):
        raise UserError(
            f"{where}: field 'lyrics' is {lyrics!r}; give the text itself, or leave the field out"
        )
    if len(lyrics) > MAX_LYRICS:
        raise UserError(
            f"{where}: lyrics of {len(lyrics)} characters; at most {MAX_LYRICS} are taken"
        )
    # JSON can spell halves of characters
    text = lyrics.replace("\r\n", "\n").encode("utf-8", "replace").decode()
    return replace(song, lyrics=text, lyrics_kind=kind) if text.strip() else song


def json_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object in `text`."""
    try:
        value = parse_json(text)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(
            f"{where}: {type(value).__name__} instead of an object; write {{...}} with the fields in it"
        )
    return value


def text_of(path: Path, data: bytes) -> str:
    """The UTF-8 text `data` of the file at `path`, without a byte order mark."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path.name}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
