"""What the user has: audio files, their metadata and lyrics, in a folder or by a manifest (JSONL or CSV)."""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
LYRICS_SUFFIXES = (".lrc", ".txt")  # where a song has both, the timed ones count
MAX_LYRICS = 200_000  # characters; a longer text beside a song is not its lyrics


@dataclass(frozen=True)
class SourceSong:
    """One song on the way in. `refusal` says why it cannot be used, `notes` what was ignored."""

    path: Path
    name: str  # how reports call it: its path below the folder, or as the manifest has it
    metadata: dict[str, Any] = field(default_factory=dict)  # the fields of Metadata that are known
    lyrics: str | None = None
    lyrics_kind: str | None = None  # "txt" plain, "lrc" timed
    refusal: str | None = None
    notes: tuple[str, ...] = ()


def as_list(value: Any) -> Any:
    """`"rock; pop"` -> ["rock", "pop"]; lists as they are. Empty entries go, order stays, repeats go."""
    parts = value.split(";") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        return value
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


Text = Annotated[str, Field(max_length=1000)]
Labels = Annotated[list[Text], BeforeValidator(as_list)]


class SongMetadata(BaseModel):
    """What may be known of a song. Everything may be missing; nothing else may be there."""

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


def find_songs(source: str | Path) -> list[SourceSong]:
    """The songs in a folder (in order of their paths) or in a manifest (in its order).

    ValueError for a source that is missing or empty and for any mistake in a manifest. In a folder, a mistake in the
    files beside one song only costs that song: it comes back with a `refusal`.
    """
    source = Path(source)
    if not source.exists():
        raise ValueError(
            f"source {str(source)!r} does not exist; give a folder of audio files or a .jsonl/.csv manifest"
        )
    songs = songs_in_folder(source) if source.is_dir() else songs_in_manifest(source)
    if not songs:
        wanted = f"audio files ({', '.join(SUFFIXES)})" if source.is_dir() else "lines"
        raise ValueError(
            f"source {str(source)!r} holds no {wanted}; put songs there or give another source"
        )
    return songs


# ---- a folder


def songs_in_folder(folder: Path) -> list[SourceSong]:
    """Every audio file below `folder`, with what lies beside it."""
    return [
        beside(folder, path)
        for path in sorted(audio_files(folder), key=lambda path: path.as_posix())
    ]


def audio_files(folder: Path) -> Iterator[Path]:
    """Audio files below `folder`, but no hidden ones, and no `<name>.stems` folders: those are parts of a song."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [
            name for name in folders if not name.startswith(".") and not name.endswith(".stems")
        ]
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(parent, name)


def beside(folder: Path, path: Path) -> SourceSong:
    """The song at `path` with its `<name>.json` and its `<name>.lrc` or `<name>.txt`, or its refusal."""
    # a name that is not UTF-8 must still fit into reports
    song = SourceSong(path, os.fsencode(path.relative_to(folder)).decode("utf-8", "replace"))
    try:
        return with_lyrics_beside(with_sidecar(song))
    except ValueError as error:
        return replace(song, refusal=f"bad metadata: {error}")


def with_sidecar(song: SourceSong) -> SourceSong:
    """Adds the metadata of `<name>.json`. Fields that mean nothing to us are ignored, with a note."""
    sidecar = song.path.with_suffix(".json")
    if not sidecar.is_file():
        return song
    values = json_object(text_of(sidecar), sidecar.name)
    unknown = sorted(set(values) - set(SongMetadata.model_fields))
    known = {name: value for name, value in values.items() if name in SongMetadata.model_fields}
    notes = (f"{sidecar.name}: ignored {', '.join(unknown)}",) if unknown else ()
    return replace(song, metadata=checked(known, sidecar.name), notes=notes)


def with_lyrics_beside(song: SourceSong) -> SourceSong:
    """Adds the lyrics of `<name>.lrc` or else `<name>.txt`."""
    for suffix in LYRICS_SUFFIXES:
        if (path := song.path.with_suffix(suffix)).is_file():
            return with_lyrics(song, text_of(path), suffix[1:], path.name)
    return song


# ---- a manifest


def songs_in_manifest(manifest: Path) -> list[SourceSong]:
    """One song a line of a .jsonl, a row of a .csv."""
    rows = {".jsonl": jsonl_rows, ".csv": csv_rows}.get(manifest.suffix.lower())
    if rows is None:
        raise ValueError(
            f"manifest {str(manifest)!r} is neither .jsonl nor .csv; rename or convert it"
        )
    return [listed(manifest.parent, where, row) for where, row in rows(manifest)]


def jsonl_rows(manifest: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of every line that is not blank."""
    # not splitlines: a JSON string may hold U+2028 and its like, which only look like the end of a line
    for number, line in enumerate(text_of(manifest).split("\n"), start=1):
        if line.strip():
            where = f"{manifest.name} line {number}"
            yield where, json_object(line, where)


def csv_rows(manifest: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of every row; empty cells are missing fields."""
    reader = csv.DictReader(io.StringIO(text_of(manifest), newline=""), restkey="")
    refuse_unknown(reader.fieldnames or (), f"{manifest.name} line 1")
    try:
        rows = [(f"{manifest.name} line {reader.line_num}", row) for row in reader]
    except csv.Error as error:
        raise ValueError(
            f"{manifest.name} line {reader.line_num}: not valid CSV ({error})"
        ) from error
    for where, row in rows:
        if row.pop("", None):
            raise ValueError(
                f"{where}: more cells than the header has columns; quote cells that hold commas"
            )
        yield where, {name: cell for name, cell in row.items() if cell and cell.strip()}


def refuse_unknown(names: Iterable[str], where: str) -> None:
    for name in names:
        if name not in COLUMNS:
            raise ValueError(
                f"{where}: unknown field {name!r}; the known ones are {', '.join(COLUMNS)}"
            )


def listed(folder: Path, where: str, row: dict[str, Any]) -> SourceSong:
    """The song of one manifest row; relative paths start at `folder`, where the manifest lies."""
    refuse_unknown(row, where)
    path = existing(folder, where, "path", row.get("path"))
    metadata = checked(
        {name: row[name] for name in row if name in SongMetadata.model_fields}, where
    )
    return with_listed_lyrics(SourceSong(path, str(row["path"]), metadata), folder, where, row)


def with_listed_lyrics(
    song: SourceSong, folder: Path, where: str, row: dict[str, Any]
) -> SourceSong:
    """Adds the lyrics given inline or as `lyrics_path`."""
    if row.get("lyrics_path") is None:
        return with_lyrics(song, row.get("lyrics") or "", "txt", where)
    if row.get("lyrics") is not None:
        raise ValueError(f"{where}: both 'lyrics' and 'lyrics_path' are given; keep one of them")
    path = existing(folder, where, "lyrics_path", row["lyrics_path"])
    if path.suffix.lower() not in LYRICS_SUFFIXES:
        raise ValueError(
            f"{where}: field 'lyrics_path' is {str(path)!r}; lyrics are .txt (plain) or .lrc (timed) files"
        )
    return with_lyrics(song, text_of(path), path.suffix[1:].lower(), f"{where}: {path.name}")


def existing(folder: Path, where: str, name: str, value: Any) -> Path:
    """The file that field `name` speaks of."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"{where}: field {name!r} is {value!r}; give the path of a file, from the manifest's folder"
        )
    path = folder / value.strip()
    if not path.is_file():
        raise ValueError(
            f"{where}: field {name!r} is {value!r}, but there is no file {str(path)!r}"
        )
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
    """What the tags of a file tell (`audio.tags`), as fields of Metadata. What makes no sense is left out: nobody wrote
    it for us, so it must not cost the song."""
    told: dict[str, Any] = {name: tags[tag] for tag, name in OF_TAGS.items() if tag in tags}
    if re.fullmatch(r"[\s()\d]*", told.get("genres", "")):  # a number in a list of the nineties
        told.pop("genres", None)
    if year := re.search(r"\b\d{4}\b", tags.get("date", "")):
        told["year"] = int(year[0])
    return {name: value for field in told.items() for name, value in sensible(*field).items()}


def sensible(name: str, value: Any) -> dict[str, Any]:
    try:
        return checked({name: value}, "tags")
    except ValueError:
        return {}


# ---- checks shared by all


def checked(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The known metadata, in the order of Metadata's fields; what is empty counts as missing."""
    try:
        metadata = SongMetadata.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{where}: {first_mistake(error)}") from error
    return {
        name: value for name, value in metadata.model_dump().items() if value not in (None, "", [])
    }


def first_mistake(error: ValidationError) -> str:
    """Field, value and way out of the first of pydantic's findings."""
    finding = error.errors()[0]
    name, way_out = finding["loc"][0], finding["msg"][0].lower() + finding["msg"][1:]
    return f"field {name!r} is {finding['input']!r}; {way_out}, or leave the field out"


def with_lyrics(song: SourceSong, lyrics: Any, kind: str, where: str) -> SourceSong:
    """`song` with these lyrics; blank ones are none."""
    if not isinstance(lyrics, str):
        raise ValueError(
            f"{where}: field 'lyrics' is {lyrics!r}; give the text itself, or leave the field out"
        )
    if len(lyrics) > MAX_LYRICS:
        raise ValueError(
            f"{where}: lyrics of {len(lyrics)} characters; at most {MAX_LYRICS} are taken"
        )
    text = (
        lyrics.replace("\r\n", "\n").encode("utf-8", "replace").decode()
    )  # JSON can spell halves of characters
    return replace(song, lyrics=text, lyrics_kind=kind) if text.strip() else song


def json_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object in `text`."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(
            f"{where}: {type(value).__name__} instead of an object; write {{...}} with the fields in it"
        )
    return value


def text_of(path: Path) -> str:
    """The UTF-8 text of a file, without a byte order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
