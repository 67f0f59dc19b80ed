"""What `prepare` passed over and what it changed, a line each in notes.jsonl: written by data/ingest, read by people.

    {"schema": 2, "source": "a/song.wav", "kind": "unused_sidecar", "detail": "song.txt is not read: song.lrc is"}

A note is told and the song is taken. `prepare --strict` refuses its song instead, `--allow KIND` all but those of a kind.
"""

import json
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from megajukebox.common.files import write_atomic
from megajukebox.records.jsonl_tail import read_lines
from megajukebox.records.schema import SCHEMA

NOTES_FILE = "notes.jsonl"


class NoteKind(str, Enum):
    """Kinds of notes; their values are what `--allow` takes. NOTE_KINDS describes them."""

    other_format = "other_format"
    not_audio = "not_audio"
    hidden = "hidden"
    folder_link = "folder_link"
    unreadable_folder = "unreadable_folder"
    stems = "stems"
    stray_sidecar = "stray_sidecar"
    unused_sidecar = "unused_sidecar"
    empty_sidecar = "empty_sidecar"
    bad_sidecar = "bad_sidecar"
    unknown_field = "unknown_field"
    bad_field = "bad_field"
    bad_tag = "bad_tag"
    text_encoding = "text_encoding"
    repaired_notes = "repaired_notes"
    unreadable_lyrics_time = "unreadable_lyrics_time"
    ambiguous_lyrics_time = "ambiguous_lyrics_time"
    moved_lyrics_time = "moved_lyrics_time"
    lyrics_offset = "lyrics_offset"
    bad_lyrics_offset = "bad_lyrics_offset"
    lyrics_tag = "lyrics_tag"
    second_lyrics = "second_lyrics"
    cut_lyrics = "cut_lyrics"
    lyrics_outside_song = "lyrics_outside_song"
    sections_outside_song = "sections_outside_song"
    length = "length"
    damaged = "damaged"
    folded = "folded"
    resampled = "resampled"
    clipped = "clipped"


# kind -> what has happened, for the table on the screen and for docs/data.md
NOTE_KINDS: dict[NoteKind, str] = {
    NoteKind.other_format: "passed over: sound or video in a format that is not read",
    NoteKind.not_audio: "passed over: no sound by its ending",
    NoteKind.hidden: "passed over: hidden",
    NoteKind.folder_link: "passed over: a link to a folder",
    NoteKind.unreadable_folder: "passed over: a folder that cannot be listed",
    NoteKind.stems: "passed over: stems, the parts of a song",
    NoteKind.stray_sidecar: "passed over: a side-car that belongs to no song",
    NoteKind.unused_sidecar: "passed over: a side-car beside a better one",
    NoteKind.empty_sidecar: "passed over: a side-car with nothing in it",
    NoteKind.bad_sidecar: "passed over: a side-car that cannot be read",
    NoteKind.unknown_field: "passed over: fields of a side-car that are not known",
    NoteKind.bad_field: "passed over: a field whose value makes no sense",
    NoteKind.bad_tag: "passed over: a tag that cannot be decoded or makes no sense",
    NoteKind.text_encoding: "changed: text decoded from another encoding than UTF-8",
    NoteKind.repaired_notes: "changed: notes that contradict their file's form",
    NoteKind.unreadable_lyrics_time: "passed over: a bracket of digits in lyrics that is no time",
    NoteKind.ambiguous_lyrics_time: "changed: times of lyrics that can be read in two ways",
    NoteKind.moved_lyrics_time: "changed: times of lyrics that contradict one another or the song",
    NoteKind.lyrics_offset: "changed: times of lyrics moved by their offset tag",
    NoteKind.bad_lyrics_offset: "passed over: an offset of lyrics that is no number",
    NoteKind.lyrics_tag: "passed over: a line of lyrics that looks like a header tag",
    NoteKind.second_lyrics: "passed over: a line of lyrics with the time of another, or a second text",
    NoteKind.cut_lyrics: "passed over: times of a line of lyrics beyond the first twenty",
    NoteKind.lyrics_outside_song: "noticed: words with times behind the song's end",
    NoteKind.sections_outside_song: "changed: sections cut at the song's end, or behind it",
    NoteKind.length: "changed: longer or shorter than its header says, or joined of several",
    NoteKind.damaged: "changed: bytes that are no sound were left out",
    NoteKind.folded: "changed: more than two channels folded into left and right",
    NoteKind.resampled: "changed: resampled",
    NoteKind.clipped: "changed: clipped, where it was beyond full scale",
}


class IngestNote(NamedTuple):
    """One thing that was passed over or changed."""

    source: str  # the file or song: its path in the collection, or as the manifest has it
    kind: NoteKind
    detail: str  # one line: what, values, way out

    def to_record(self) -> dict[str, object]:
        """The line of notes.jsonl."""
        return {
            "schema": SCHEMA,
            "source": self.source,
            "kind": self.kind.value,
            "detail": self.detail,
        }


def note_of_record(record: object) -> IngestNote | None:
    """The note in a line of notes.jsonl; None if it is not one of a kind that this version knows."""
    if not isinstance(record, dict):
        return None
    source, detail = record.get("source"), record.get("detail")
    if not isinstance(source, str) or not isinstance(detail, str):
        return None
    try:
        return IngestNote(source, NoteKind(record.get("kind")), detail)
    except ValueError:
        return None


def write_notes(folder: Path, notes: Iterable[IngestNote]) -> None:
    """Write notes.jsonl, whole or not at all."""
    lines = "".join(json.dumps(note.to_record()) + "\n" for note in notes)
    write_atomic(folder / NOTES_FILE, lines.encode())


def read_notes(folder: Path) -> list[IngestNote]:
    """The notes beside a song set; [] of one that was prepared before there were any."""
    notes = (note_of_record(record) for record in read_lines(folder / NOTES_FILE))
    return [note for note in notes if note is not None]
