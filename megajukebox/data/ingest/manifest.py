"""Songs by a manifest: a line of a .jsonl, or a row of a .csv, each with its path, metadata and lyrics.

A manifest is read in one way or not at all. A row with a mistake costs its own song, which is refused with file, line,
field, value and way out. What makes the rest of a file doubtful (an open quote, a column twice) refuses the file.
"""

import csv
import difflib
import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import read_given
from megajukebox.common.validation_errors import shortened
from megajukebox.data.ingest.source_song import (
    LYRICS_SUFFIXES,
    MAX_BESIDE,
    SongMetadata,
    SourceSong,
    checked,
    json_object,
    text_of,
    with_lyrics,
)

MAX_MANIFEST = 1 << 30  # bytes
COLUMNS = ("path", *SongMetadata.model_fields, "lyrics", "lyrics_path")
OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}
# A line of lyrics that is a row by its looks: a cell that names a file of sound.
LIKE_A_ROW = re.compile(
    r"(?:^|,)[^,\"]*\.(?:wav|flac|ogg|mp3|opus|m4a|aiff?)(?:,|$)", re.IGNORECASE
)


class ManifestRow(NamedTuple):
    """One row as it is written: its values, or what is wrong with it."""

    where: str  # "songs.csv line 3"
    values: dict[str, Any]
    mistake: str = ""


def songs_of_manifest(manifest: Path) -> list[SourceSong]:
    """The songs of a .jsonl or .csv, in its order; a row with a mistake is a refused one.

    Raises:
        UserError: the manifest itself cannot be read in one way; names file and line.
    """
    rows = {".jsonl": jsonl_rows, ".csv": csv_rows}.get(manifest.suffix.lower())
    if rows is None:
        raise UserError(
            f"manifest {str(manifest)!r} is neither .jsonl nor .csv; rename or convert it"
        )
    songs = []
    for row in rows(manifest):
        try:
            if row.mistake:
                raise UserError(f"{row.where}: {row.mistake}")
            songs.append(song_of_row(manifest.parent, row.where, row.values))
        except (UserError, OSError) as error:
            # A path that is no file, so that the plan of the shards does not hang on the manifest's own time.
            path = manifest.parent / row.where
            songs.append(SourceSong(path, row.where, refusal=f"bad row: {error}"))
    return songs


# ---- JSON Lines


def jsonl_rows(manifest: Path) -> Iterator[ManifestRow]:
    """Every line that is not blank."""
    text = text_of(manifest, read_given(manifest, MAX_MANIFEST))
    # not splitlines: a JSON string may hold U+2028 and its like, which only look like the end of a
    # line
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{manifest.name} line {number}"
        try:
            yield ManifestRow(where, json_object(line, where))
        except UserError as error:
            yield ManifestRow(where, {}, str(error).removeprefix(f"{where}: "))


# ---- CSV (RFC 4180)


def csv_rows(manifest: Path) -> Iterator[ManifestRow]:
    """Every row; empty cells are missing fields.

    Raises:
        UserError: the header is not one of ours, or a quote is never closed.
    """
    text = text_of(manifest, read_given(manifest, MAX_MANIFEST))
    before = csv.field_size_limit(MAX_MANIFEST)  # MAX_LYRICS and SongMetadata are the limits
    try:
        rows = list(_rows_of(manifest.name, text))
    finally:
        csv.field_size_limit(before)
    return iter(rows)


def _rows_of(name: str, text: str) -> Iterator[ManifestRow]:
    lines = list(io.StringIO(text, newline=""))  # as the reader counts them
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        first = reader.line_num + 1
        where = f"{name} line {first}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise UserError(
                    f"{where}: a quote is opened and never closed; close it, or double each quote"
                    " that is part of a text"
                ) from None
            if header is None:
                raise UserError(f"{where}: not valid CSV ({error})") from None
            yield ManifestRow(where, {}, f"not valid CSV ({error}); double each quote in a text")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = checked_header(cells, where)
            continue
        values = {column: cell for column, cell in zip(header, cells) if cell.strip()}
        mistake = ""
        if any(cell.strip() for cell in cells[len(header) :]):
            mistake = "more cells than the header has columns; quote cells that hold commas"
        elif reader.line_num > first:
            mistake = swallowed_lines(values, lines[first : reader.line_num], first)
        yield ManifestRow(where, values, mistake)


def checked_header(names: list[str], where: str) -> list[str]:
    """The columns of the first row.

    Raises:
        UserError: one is unknown, stands twice, or is missing; or commas do not separate them.
    """
    for mark, called in OTHER_DELIMITERS.items():
        if len(names) == 1 and mark in names[0]:
            raise UserError(f"{where}: {called} separate the columns; save the file with commas")
    refuse_unknown(names, where)
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: column {name!r} stands twice; keep one of them")
    if "path" not in names:
        raise UserError(f"{where}: there is no column 'path'; it names the file of each song")
    return names


def swallowed_lines(values: dict[str, Any], lines: list[str], first: int) -> str:
    """What is wrong with a row over several lines, "" if nothing is: a quote that was closed too late takes rows in.

    Args:
        lines: those after its first, which is line `first` of the file.
    """
    last = first + len(lines)
    for name, cell in values.items():
        if name != "lyrics" and re.search(r"[\r\n]", cell.strip()):
            return (
                f"field {name!r} goes from line {first} to line {last}, as {shortened(cell)}; close"
                " the quote where it ends, in its own line"
            )
    for number, line in enumerate(lines, start=first + 1):
        if LIKE_A_ROW.search(line):
            return (
                f"the lyrics that begin here hold line {number}, {shortened(line.rstrip())}, which reads like a"
                " row; close the quote before it"
            )
    return ""


# ---- a row


def refuse_unknown(names: Iterable[str], where: str) -> None:
    for name in names:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name.strip().lower(), COLUMNS, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(
                f"{where}: unknown field {shortened(name)}; {hint}the known ones are {', '.join(COLUMNS)}"
            )


def song_of_row(folder: Path, where: str, row: dict[str, Any]) -> SourceSong:
    """The song of one manifest row; relative paths start at `folder`, where the manifest lies.

    Its lyrics are given inline or as `lyrics_path`.

    Raises:
        UserError: names the field, its value and the way out.
        OSError: the file of its lyrics cannot be read.
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
            f"{where}: field 'lyrics_path' is {shortened(str(lyrics))}; "
            "lyrics are .txt (plain) or .lrc (timed) files"
        )
    text = text_of(lyrics, read_given(lyrics, MAX_BESIDE))
    return with_lyrics(song, text, suffix[1:], f"{where}: {lyrics.name}")


def existing(folder: Path, where: str, name: str, value: Any) -> Path:
    """The file that field `name` names."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(
            f"{where}: field {name!r} is {shortened(value)}; give the path of a file, from the manifest's folder"
        )
    path = folder / value.strip()
    if os.path.isfile(path):  # which says no to a name that no file can have
        return path
    if name == "lyrics_path":
        way_out = "it names a file, and there is none; words go into the field 'lyrics'"
    else:
        way_out = f"but there is no file {shortened(str(path))}"
    raise UserError(f"{where}: field {name!r} is {shortened(value)}; {way_out}")
