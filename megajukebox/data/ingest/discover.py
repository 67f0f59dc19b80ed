"""What the user has: audio files, their metadata and lyrics, in a folder or by a manifest (JSONL
or CSV).
"""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import read_given
from megajukebox.data.ingest.sidecars import (
    SIDECAR_SUFFIXES,
    FolderSidecars,
    SidecarReader,
    report_name,
)
from megajukebox.data.ingest.source_song import (
    LYRICS_SUFFIXES,
    MAX_BESIDE,
    SongMetadata,
    SourceSong,
    checked,
    json_object,
    place_within,
    text_of,
    with_lyrics,
)
from megajukebox.records.ingest_notes import IngestNote, NoteKind

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
# Endings of sound and video that are not read: they are told as such, and with the way out.
UNREAD_SUFFIXES = (
    *(".aac", ".ac3", ".aif", ".aiff", ".alac", ".amr", ".ape", ".au", ".avi", ".caf", ".dsf"),
    *(".dts", ".flv", ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp2", ".mp4", ".mpc", ".mpeg"),
    *(".mpg", ".oga", ".ogv", ".opus", ".ra", ".snd", ".spx", ".tta", ".w64", ".wave", ".webm"),
    *(".wma", ".wmv", ".wv", ".3gp"),
)
MAX_MANIFEST = 1 << 30  # bytes
MAX_ENDINGS = 5  # of what was passed over, in one line


COLUMNS = ("path", *SongMetadata.model_fields, "lyrics", "lyrics_path")


class FoundSongs(NamedTuple):
    """The songs of a source, and what in it is none of them."""

    songs: list[SourceSong]
    notes: list[IngestNote]  # on files and folders that were passed over


def find_songs(source: str | Path, follow_links: bool = False) -> list[SourceSong]:
    """The songs that `find_collection` finds."""
    return find_collection(source, follow_links).songs


def find_collection(source: str | Path, follow_links: bool = False) -> FoundSongs:
    """The songs in a folder (in order of their paths) or in a manifest (in its order), and what was passed over.

    In a folder, a mistake in a file beside a song costs that file, and a note. A song that is a link out of the folder
    gets a `refusal`, without `follow_links`: whoever put it there may mean a file that is nobody's song. What a
    manifest names is read wherever it lies.

    Raises:
        UserError: the source is missing or empty, or there is a mistake in a manifest.
    """
    source = Path(source)
    notes: list[IngestNote] = []
    if not source.exists():
        raise UserError(
            f"source {str(source)!r} does not exist; give a folder of audio files or a .jsonl/.csv manifest"
        )
    if source.is_dir():
        songs = songs_of_folder(source, follow_links, notes)
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
            f"source {str(source)!r} holds no {wanted}{most_passed_over(notes)}; "
            "put songs there or give another source"
        )
    return FoundSongs(songs, notes)


# ---- a folder


def songs_of_folder(folder: Path, follow_links: bool, notes: list[IngestNote]) -> list[SourceSong]:
    """The songs below `folder`, in order of their paths; `notes` gets a line for everything that is passed over."""
    reader = SidecarReader(folder, follow_links)
    songs: list[SourceSong] = []
    for parent, names in folders_below(folder, follow_links, notes):
        visible = [name for name in names if not name.startswith(".")]
        sidecars = FolderSidecars(visible)
        for name in visible:
            if name.lower().endswith(SUFFIXES):
                songs.append(song_at(Path(parent, name), reader, sidecars))
        strays = set(sidecars.strays())
        for name in names:
            kind, reason = why_passed_over(name, strays)
            if kind is not None:
                notes.append(IngestNote(report_name(Path(parent, name), folder), kind, reason))
    notes.sort()
    return sorted(songs, key=lambda song: song.path.as_posix())


def folders_below(
    folder: Path, follow_links: bool, notes: list[IngestNote]
) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of the files in it) of `folder` and all below it that are searched for songs.

    Not searched: hidden folders, `<name>.stems` (parts of a song), and links to folders without `follow_links`. A folder
    that several links lead to is searched once.
    """

    def unreadable(error: OSError) -> None:
        name = report_name(Path(error.filename), folder)
        reason = f"it cannot be listed ({error.strerror}); mend its permissions"
        notes.append(IngestNote(name, NoteKind.unreadable_folder, reason))

    seen: set[str] = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, onerror=unreadable, followlinks=follow_links):
        searched: list[str] = []
        for name in sorted(folders):
            path = Path(parent, name)
            kind, reason = why_not_searched(path, follow_links, seen)
            if kind is None:
                searched.append(name)
            else:
                notes.append(IngestNote(report_name(path, folder), kind, reason))
        folders[:] = searched  # os.walk goes on into what is left in this list
        yield parent, names


def why_not_searched(path: Path, follow_links: bool, seen: set[str]) -> tuple[NoteKind | None, str]:
    """Why a folder is not searched for songs, or (None, "")."""
    if path.name.startswith("."):
        return NoteKind.hidden, "a hidden folder is not searched; rename it if it holds songs"
    if path.name.endswith(".stems"):
        return NoteKind.stems, "a .stems folder holds parts of a song; rename it if it holds songs"
    if not follow_links:
        if path.is_symlink():
            return NoteKind.folder_link, "a link to a folder; give --follow-links to search it"
        return None, ""
    place = os.path.realpath(path)
    if place in seen:
        return NoteKind.folder_link, f"leads to {place}, which is searched already"
    seen.add(place)
    return None, ""


def why_passed_over(name: str, strays: set[str]) -> tuple[NoteKind | None, str]:
    """Why a file of a folder is neither a song nor beside one, or (None, "")."""
    if name.startswith("."):
        return NoteKind.hidden, "a hidden file is not read; rename it if it is a song"
    suffix = os.path.splitext(name)[1].lower()
    if suffix in SUFFIXES:
        return None, ""
    if suffix in SIDECAR_SUFFIXES:
        if name in strays:
            return NoteKind.stray_sidecar, "no song here has this name; name it like its song"
        return None, ""
    if suffix in UNREAD_SUFFIXES:
        way_out = "convert it to FLAC, as with: ffmpeg -i SONG SONG.flac"
        return NoteKind.other_format, f"{suffix} is not read; {way_out}"
    return NoteKind.not_audio, f"{suffix or 'no ending'} is not taken for sound"


def most_passed_over(notes: list[IngestNote]) -> str:
    """` (passed over: 12 .m4a, 3 .jpg)` of the files that are no songs, "" without any."""
    endings = Counter(
        os.path.splitext(note.source)[1].lower() or "without an ending"
        for note in notes
        if note.kind in (NoteKind.other_format, NoteKind.not_audio)
    )
    counts = [f"{count} {ending}" for ending, count in endings.most_common(MAX_ENDINGS)]
    return f" (passed over: {', '.join(counts)})" if counts else ""


def song_at(path: Path, reader: SidecarReader, sidecars: FolderSidecars) -> SourceSong:
    """The song at `path` with what lies beside it, or its refusal."""
    song = SourceSong(path, report_name(path, reader.root))
    if not reader.follow_links:
        try:
            song = replace(song, within=place_within(reader.root, path))
        except UserError as error:
            song = replace(song, refusal=f"link: {error}")
    return reader.song(song, sidecars)


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
