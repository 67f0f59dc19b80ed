"""Reading a file of notes by its ending: MIDI, ABC, MusicXML, kern."""

from collections.abc import Iterator
from pathlib import Path

from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import read_given
from megajukebox.notes.notes import Notes
from megajukebox.notes.parts import ReadPiece

MIDI_ENDINGS = (".mid", ".midi", ".kar", ".rmi")
SHEET_ENDINGS = (".abc", ".musicxml", ".xml", ".mxl", ".krn")
ENDINGS = (*MIDI_ENDINGS, *SHEET_ENDINGS)
MAX_BYTES = 64 << 20
EXTRA = "pip install 'megajukebox[notes]'"


def pieces_of(data: bytes, ending: str, pedal: bool = True) -> Iterator[ReadPiece]:
    """The pieces in a file's bytes: one, or each tune of an ABC tunebook.

    Raises:
        ValueError: the file, or its only piece, cannot be read; the message says why.
        UserError: the library that reads it is not installed.
    """
    ending = ending.lower()
    if len(data) > MAX_BYTES:
        raise ValueError(f"has {len(data):,} bytes, more than {MAX_BYTES:,}")
    try:
        if ending in MIDI_ENDINGS:
            from megajukebox.notes.midi import read_midi

            yield read_midi(data, pedal)
            return
        if ending in SHEET_ENDINGS:
            from megajukebox.notes.sheets import read_sheet

            yield from read_sheet(data, ending)
            return
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is needed to read {ending} files: {EXTRA}") from None
    raise ValueError(f"ends in {ending!r}; notes are read from {', '.join(ENDINGS)}")


def read_notes(path: Path) -> Notes:
    """The piece of a file, of several the first.

    Raises:
        UserError: it cannot be read; the message says why.
    """
    try:
        for piece in pieces_of(read_given(path, MAX_BYTES), path.suffix):
            if piece.notes is not None:
                return piece.notes
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None
    raise UserError(f"{path}: holds no piece that can be read")
