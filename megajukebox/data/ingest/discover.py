"""What the user has: audio files, their metadata and lyrics, in a folder or by a manifest (JSONL
or CSV).
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import open_inside
from megajukebox.data.ingest.manifest import songs_of_manifest
from megajukebox.data.ingest.sidecars import (
    SIDECAR_SUFFIXES,
    FolderSidecars,
    SidecarReader,
    report_name,
)
from megajukebox.data.ingest.source_song import (
    SourceSong,
    place_within,
)
from megajukebox.data.recordings.kinds import (
    SUFFIXES_OF_EXTRA,
    SUFFIXES_READ,
    SUFFIXES_UNREAD,
    name_of_sound,
)
from megajukebox.data.recordings.pieces import ByteView
from megajukebox.records.ingest_notes import IngestNote, NoteKind

SUFFIXES = (*SUFFIXES_READ, *SUFFIXES_OF_EXTRA)
COMMON_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")  # in a message
MAX_ENDINGS = 5  # of what was passed over, in one line


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
    manifest names is read wherever it lies; a row of it with a mistake is a song with a `refusal`.

    Raises:
        UserError: the source is missing or empty, or a manifest cannot be read in one way.
    """
    source = Path(source)
    notes: list[IngestNote] = []
    if not os.path.exists(source):  # which says no to a name that is too long
        raise UserError(
            f"source {str(source)!r} does not exist; give a folder of audio files or a .jsonl/.csv manifest"
        )
    is_folder = source.is_dir()
    songs = songs_of_folder(source, follow_links, notes) if is_folder else songs_of_manifest(source)
    if not songs:
        wanted = f"audio files ({', '.join(COMMON_SUFFIXES)})" if is_folder else "lines"
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
            if kind is NoteKind.not_audio and (sound := sound_in(Path(parent, name), folder)):
                kind = NoteKind.other_format
                reason = f"it is {sound} by its first bytes; give its name that ending"
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
    if suffix in SUFFIXES_UNREAD:
        return NoteKind.other_format, f"{suffix} is not read; render or convert it to FLAC"
    return NoteKind.not_audio, f"{suffix or 'no ending'} is not taken for sound"


def sound_in(path: Path, folder: Path) -> str | None:
    """What kind of sound a file is by its first bytes, whatever its name; None if none, or if it cannot be read."""
    try:
        with open_inside(*place_within(folder, path)) as file:
            return name_of_sound(ByteView(file))
    except (OSError, UserError):
        return None


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
