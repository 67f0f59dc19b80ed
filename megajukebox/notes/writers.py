"""Writing a piece by its ending, and what each format cannot hold of it."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from megajukebox.common.errors import UserError
from megajukebox.notes.abc import to_abc
from megajukebox.notes.instruments import CHOIR, programs_by_names
from megajukebox.notes.musicxml import chord_name, to_musicxml
from megajukebox.notes.notation import key_fifths, measures_of, voices_of
from megajukebox.notes.notes import (
    CHORD_SYMBOL,
    MAX_PARTS,
    PHRASE_END,
    WORD,
    NoteMark,
    Notes,
    ticks_of_bar,
)
from megajukebox.notes.readers import EXTRA

MIDI, MUSICXML, ABC = "mid", "musicxml", "abc"
NOTE_FORMATS = (MIDI, MUSICXML, ABC)


def written(notes: Notes, form: str, title: str = "") -> bytes:
    """The piece as a file of one of NOTE_FORMATS.

    Raises:
        UserError: the library that writes it is not installed.
    """
    if form == MUSICXML:
        return to_musicxml(notes, title)
    if form == ABC:
        return to_abc(notes, title).encode()
    assert form == MIDI, form
    try:
        from megajukebox.notes.midi import to_midi
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is needed to write .mid files: {EXTRA}") from None
    return to_midi(notes)


def written_losses(notes: Notes, form: str) -> list[str]:
    """What our own readers do not find again in the file; [] if they read the same piece.

    Written for people: "12 loudnesses", in the order in which a reader would miss it.
    """
    lost = LOSSES[form](notes)
    if notes.played or not len(notes.bars):
        lost["the freedom of performed time: it is written in bars"] = 1
    elif any(bar_is_longer(notes)):
        lost["bars longer than their metre, divided"] = sum(bar_is_longer(notes))
    if notes.key and key_fifths(notes.key) is None:
        lost["a key without a signature"] = 1
    return [what if count == 1 else f"{count} {what}" for what, count in lost.items() if count]


def bar_is_longer(notes: Notes) -> list[bool]:
    """Of every bar, whether it is longer than its metre."""
    ends = [*notes.bars["onset"].tolist(), notes.length]
    metres = zip(notes.bars["numerator"].tolist(), notes.bars["denominator"].tolist())
    return [
        end - start > ticks_of_bar(*metre) for (start, end), metre in zip(pairwise(ends), metres)
    ]


def _midi_losses(notes: Notes) -> Counter[str]:
    lost: Counter[str] = Counter()
    lost["notes of no said loudness, written at 80"] = int((notes.notes["velocity"] == 0).sum())
    lost["fermatas and chord symbols"] = sum(mark.kind != WORD for mark in notes.marks)
    used = set(notes.notes["part"].tolist())
    lost["parts without a note"] = len(notes.parts) - len(used)
    named = programs_by_names([part.name for part in notes.parts])
    pianos = [part.program == 0 and name for part, name in zip(notes.parts, named)]
    lost["pianos whose names say another instrument"] = sum(map(bool, pianos))
    return lost


def _musicxml_losses(notes: Notes) -> Counter[str]:
    lost: Counter[str] = Counter()
    lost["words and fermatas where no note begins"] = len(marks_off_notes(notes))
    figures = [mark.text for mark in notes.marks if mark.kind == CHORD_SYMBOL]
    lost["chord symbols of unknown kinds"] = sum(chord_name(text) is None for text in figures)
    return lost


def _abc_losses(notes: Notes) -> Counter[str]:
    lost: Counter[str] = Counter()
    lost["loudnesses"] = int((notes.notes["velocity"] > 0).sum())
    parts = [part.name for part in notes.parts]
    for part, named in zip(notes.parts, programs_by_names(parts)):
        read = named if named is not None else CHOIR if len(parts) > 1 else 0
        lost["instruments"] += read != part.program
    lost["words, fermatas and chord symbols"] = len(notes.marks)
    lost["changes of tempo"] = len(notes.tempo) - 1
    for number in range(len(notes.parts)):
        layers = len(voices_of(notes, number))
        lost["voices that become parts of their own"] += layers - 1
        for layer in range(layers):
            for measure in measures_of(notes, number, layer):
                tied = [len(chord.pitches) > 1 and chord.tied_to for chord in measure.voices[0]]
                lost["ties of chords"] += sum(tied)
    voices = len(parts) + lost["voices that become parts of their own"]
    lost["voices behind the sixteenth, which join others"] = max(0, voices - MAX_PARTS)
    return lost


def marks_off_notes(notes: Notes) -> list[NoteMark]:
    """Words and fermatas at whose tick no note of their part begins, or of which another one stands there."""
    begins = set(zip(notes.notes["part"].tolist(), notes.notes["onset"].tolist()))
    taken = set()
    lost = []
    for mark in notes.marks:
        if mark.kind not in (WORD, PHRASE_END):
            continue
        place = (mark.kind, mark.part, mark.onset)
        if (mark.part, mark.onset) not in begins or place in taken:
            lost.append(mark)
        taken.add(place)
    return lost


LOSSES: dict[str, Callable[[Notes], Counter[str]]] = {
    MIDI: _midi_losses,
    MUSICXML: _musicxml_losses,
    ABC: _abc_losses,
}
