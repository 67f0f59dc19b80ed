"""The files beside a song: its fields (`song.json`), its words (`song.lrc`, `song.txt`) and its sections
(`song.sections.txt`), as people name them.

    song.lrc   SONG.Lrc   song.wav.lrc   and names in another Unicode form: the nearest to the song's own name is read

Of several the best one that holds anything is read. A bad one costs itself and not its song. What is not read is told.
"""

import os
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import read_given, read_inside
from megajukebox.conditioning.lrc import parse_lrc
from megajukebox.data.ingest.source_song import (
    LYRICS_SUFFIXES,
    MAX_BESIDE,
    SECTIONS_SUFFIX,
    SongMetadata,
    SourceSong,
    checked,
    decoded_text,
    json_object,
    place_within,
    text_of,
    with_lyrics,
)
from megajukebox.records.ingest_notes import IngestNote, NoteKind

FIELDS_SUFFIX = ".json"
SIDECAR_SUFFIXES = (FIELDS_SUFFIX, *LYRICS_SUFFIXES)


def name_key(name: str) -> str:
    """What names have in common that differ in case or in Unicode form only (Unicode Standard Annex 15)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def report_name(path: Path, folder: Path) -> str:
    """The path below `folder` as text; a name that is not UTF-8 must still fit into reports."""
    return os.fsencode(path.relative_to(folder)).decode("utf-8", "replace")


class FolderSidecars:
    """The side-cars of one folder, and which of them a song has asked for."""

    def __init__(self, names: Iterable[str]) -> None:
        self.by_key: dict[str, list[str]] = {}
        for name in sorted(names):
            if name.lower().endswith(SIDECAR_SUFFIXES):
                self.by_key.setdefault(name_key(name), []).append(name)
        self.claimed: set[str] = set()  # names that belong to a song, read or not

    def of_song(self, song: str, suffix: str) -> list[str]:
        """Names of the side-cars of a song's file, the nearest to its name first: `a.lrc`, `A.LRC`, `a.wav.lrc`."""
        found: list[str] = []
        for stem in (song.rpartition(".")[0], song):
            exact = stem + suffix

            def distance(name: str, exact: str = exact) -> tuple[bool, bool, str]:
                same_text = unicodedata.normalize("NFC", name) == unicodedata.normalize(
                    "NFC", exact
                )
                return name != exact, not same_text, name

            found += sorted(self.by_key.get(name_key(exact), ()), key=distance)
        self.claimed.update(found)
        return found

    def strays(self) -> Iterator[str]:
        """Those that no song has asked for."""
        for names in self.by_key.values():
            yield from (name for name in names if name not in self.claimed)


@dataclass
class SidecarReader:
    """Reads the side-cars of one song after another, and collects notes on what it does not take."""

    root: Path  # the collection
    follow_links: bool = False

    def song(self, song: SourceSong, sidecars: FolderSidecars) -> SourceSong:
        """`song` with the fields and words that lie beside it, and with notes."""
        notes: list[IngestNote] = []
        metadata = self._fields(song, sidecars.of_song(song.path.name, FIELDS_SUFFIX), notes)
        labels = sidecars.of_song(song.path.name, SECTIONS_SUFFIX)
        metadata |= self._sections(song, labels, metadata, notes)
        candidates: list[str] = []
        for suffix in LYRICS_SUFFIXES:
            candidates += sidecars.of_song(song.path.name, suffix)
        song = self._words(replace(song, metadata=metadata), candidates, notes)
        return replace(song, notes=tuple(notes))

    def _fields(
        self, song: SourceSong, candidates: list[str], notes: list[IngestNote]
    ) -> dict[str, Any]:
        """The fields of the first JSON that holds an object."""
        for number, name in enumerate(candidates):
            try:
                text = self._text(song, name, notes)
                if not text.strip():
                    notes.append(IngestNote(song.name, NoteKind.empty_sidecar, f"{name} is empty"))
                    continue
                found = json_object(text, name)
            except (UserError, OSError) as error:
                notes.append(bad_sidecar(song, name, error))
                continue
            notes += unused(song, name, candidates[number + 1 :])
            return known_fields(song, name, found, notes)
        return {}

    def _sections(
        self,
        song: SourceSong,
        candidates: list[str],
        metadata: dict[str, Any],
        notes: list[IngestNote],
    ) -> dict[str, Any]:
        """The field `sections` of the first label file that holds any, where the song's JSON has none."""
        if "sections" in metadata:
            notes += unused(song, f"sections of {FIELDS_SUFFIX[1:]}", candidates)
            return {}
        for number, name in enumerate(candidates):
            try:
                text = self._text(song, name, notes)
                fields = checked({"sections": text}, name)
            except (UserError, OSError) as error:
                notes.append(bad_sidecar(song, name, error))
                continue
            if not fields:
                notes.append(IngestNote(song.name, NoteKind.empty_sidecar, f"{name} is empty"))
                continue
            notes += unused(song, name, candidates[number + 1 :])
            return fields
        return {}

    def _words(
        self, song: SourceSong, candidates: list[str], notes: list[IngestNote]
    ) -> SourceSong:
        """`song` with the first lyrics that hold any word."""
        for number, name in enumerate(candidates):
            try:
                text = self._text(song, name, notes)
                with_words = with_lyrics(song, text, Path(name).suffix.lower()[1:], name)
            except (UserError, OSError) as error:
                notes.append(bad_sidecar(song, name, error))
                continue
            if with_words.lyrics is None or not parse_lrc(with_words.lyrics)[0].strip():
                notes.append(IngestNote(song.name, NoteKind.empty_sidecar, f"{name} has no words"))
                continue
            notes += unused(song, name, candidates[number + 1 :])
            return with_words
        return song

    def _text(self, song: SourceSong, name: str, notes: list[IngestNote]) -> str:
        """The text of the side-car `name`, past no link unless links are followed."""
        path = song.path.with_name(name)
        data = self._bytes(path)
        text = text_of(path, data)
        encoding = decoded_text(data)[1]
        if encoding != "utf-8":
            detail = f"{name} is read as {encoding}; save it as UTF-8 to be sure"
            notes.append(IngestNote(song.name, NoteKind.text_encoding, detail))
        return text

    def _bytes(self, path: Path) -> bytes:
        if self.follow_links:
            return read_given(path, MAX_BESIDE)
        return read_inside(*place_within(self.root, path), MAX_BESIDE)


def bad_sidecar(song: SourceSong, name: str, error: Exception) -> IngestNote:
    """The note that a side-car is left out."""
    reason = str(error)
    if isinstance(error, OSError):
        reason = f"{name}: {error.strerror or error}"
    return IngestNote(song.name, NoteKind.bad_sidecar, reason)


def unused(song: SourceSong, read: str, others: list[str]) -> list[IngestNote]:
    """A note for each side-car behind the one that is read."""
    notes = []
    for name in others:
        detail = f"{name} is not read: {read} is; keep one of them"
        notes.append(IngestNote(song.name, NoteKind.unused_sidecar, detail))
    return notes


def known_fields(
    song: SourceSong, name: str, found: dict[str, Any], notes: list[IngestNote]
) -> dict[str, Any]:
    """The fields of a JSON that SongMetadata has, whatever their case; the others are told and left out."""
    values: dict[str, Any] = {}
    unknown: list[str] = []
    for key, value in found.items():
        known = key if key in SongMetadata.model_fields else key.strip().casefold()
        if known not in SongMetadata.model_fields or (known != key and known in found):
            unknown.append(key)
        elif known in values:
            unknown.append(key)  # given twice, in two spellings: the first counts
        else:
            values[known] = value
    if unknown:
        detail = f"{name}: ignored {', '.join(sorted(unknown))}"
        notes.append(IngestNote(song.name, NoteKind.unknown_field, detail))
    metadata: dict[str, Any] = {}
    for field_name in SongMetadata.model_fields:
        if field_name in values:
            try:
                metadata |= checked({field_name: values[field_name]}, name)
            except UserError as error:
                notes.append(IngestNote(song.name, NoteKind.bad_field, str(error)))
    return metadata
