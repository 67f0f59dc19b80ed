"""A piece as MusicXML 4.0 (W3C), which every score editor opens. `sheets.read_sheet` reads it back as it was.

Every length is written in ticks (24 divisions a quarter), in values that can be printed. Programs stand in
<midi-instrument>, loudness in the attribute `dynamics` of a note (per cent of velocity 90).
"""

import re
from collections import defaultdict
from typing import NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from megajukebox.notes.instruments import ScorePart
from megajukebox.notes.notation import (
    NOTE_VALUES,
    WrittenMeasure,
    WrittenNote,
    is_low,
    key_fifths,
    measure_spans,
    measures_of,
    spelled,
)
from megajukebox.notes.notes import (
    CHORD_SYMBOL,
    PHRASE_END,
    TICKS_PER_QUARTER,
    WORD,
    NoteMark,
    Notes,
    ticks_of_bar,
)

SOFTWARE = "megajukebox"  # in <software>: the reader then believes every <midi-program>
HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<!DOCTYPE score-partwise PUBLIC "-//Recordare//DTD MusicXML 4.0 Partwise//EN"'
    ' "http://www.musicxml.org/dtds/partwise.dtd">\n'
)
LOUD_VELOCITY = 90  # what `dynamics="100"` is, by the standard
DRUM_CHANNEL = 10
# Characters that no XML may hold.
NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
CHORD = re.compile(r"([A-G])([#b-]?)(.*?)(?:/([A-G])([#b-]?))?")
# Kinds of chords as they are written behind the root, and MusicXML's words for them.
CHORD_KINDS = {
    "": "major",
    "m": "minor",
    "+": "augmented",
    "dim": "diminished",
    "7": "dominant",
    "maj7": "major-seventh",
    "m7": "minor-seventh",
    "mM7": "major-minor",
    "ø7": "half-diminished",
    "o7": "diminished-seventh",
    "6": "major-sixth",
    "m6": "minor-sixth",
    "9": "dominant-ninth",
    "sus2": "suspended-second",
    "sus4": "suspended-fourth",
}
CHORD_SPELLINGS = {"min": "m", "M": "", "maj": "", "M7": "maj7", "min7": "m7", "sus": "sus4"}
ALTERS = {"": 0, "#": 1, "b": -1, "-": -1}  # "-" is music21's flat


class ChordName(NamedTuple):
    """A chord symbol, taken apart."""

    root: str
    alter: int
    kind: str  # of CHORD_KINDS' values
    bass: str | None = None
    bass_alter: int = 0


def to_musicxml(notes: Notes, title: str = "") -> bytes:
    """The piece as an uncompressed .musicxml file.

    What is lost is what `written_losses` says.
    """
    score = Element("score-partwise", version="4.0")
    if title:
        _text(SubElement(score, "work"), "work-title", title)
    encoding = SubElement(SubElement(score, "identification"), "encoding")
    _text(encoding, "software", SOFTWARE)
    part_list = SubElement(score, "part-list")
    pitched = 0
    for number, part in enumerate(notes.parts):
        channel = DRUM_CHANNEL
        if not part.is_drums:
            pitched += 1
            channel = (pitched - 1) % 15 + 1
            channel += channel >= DRUM_CHANNEL
        _list_part(part_list, number, part, channel)
    first = 0 if has_pickup(notes) else 1
    for number in range(len(notes.parts)):
        _write_part(SubElement(score, "part", id=f"P{number + 1}"), notes, number, first)
    ElementTree.indent(score, " ")
    return HEAD.encode() + ElementTree.tostring(score, encoding="utf-8") + b"\n"


def _text(parent: Element, tag: str, text: object) -> Element:
    child = SubElement(parent, tag)
    child.text = NOT_XML.sub("", str(text))
    return child


def _list_part(part_list: Element, number: int, part: ScorePart, channel: int) -> None:
    element = SubElement(part_list, "score-part", id=f"P{number + 1}")
    _text(element, "part-name", part.name)
    instrument = f"P{number + 1}-I1"
    # A name here would win over a program in some readers, music21 among them.
    SubElement(SubElement(element, "score-instrument", id=instrument), "instrument-name")
    midi = SubElement(element, "midi-instrument", id=instrument)
    _text(midi, "midi-channel", channel)
    _text(midi, "midi-program", 1 if part.is_drums else part.program + 1)


def _write_part(part: Element, notes: Notes, number: int, first: int) -> None:
    """Bars of a part; `first` is the number of its first one."""
    fifths = key_fifths(notes.key)
    marks = [mark for mark in notes.marks if mark.part == number]
    metre: tuple[int, int] | None = None
    for count, measure in enumerate(measures_of(notes, number)):
        bar = SubElement(part, "measure", number=str(first + count))
        if first + count == 0:
            bar.set("implicit", "yes")
        if count == 0 or measure.metre != metre:
            attributes = SubElement(bar, "attributes")
            if count == 0:
                _text(attributes, "divisions", TICKS_PER_QUARTER)
                if fifths is not None:
                    _write_key(attributes, fifths, notes.key)
            time = SubElement(attributes, "time")
            _text(time, "beats", measure.metre[0])
            _text(time, "beat-type", measure.metre[1])
            if count == 0:
                _write_clef(attributes, notes, number)
        metre = measure.metre
        if number == 0:
            _write_tempo(bar, notes, measure)
        _write_chord_symbols(bar, marks, measure)
        _write_voices(bar, measure, marks, fifths or 0)


def has_pickup(notes: Notes) -> bool:
    """Whether the first of several bars is short; it is numbered 0."""
    spans = measure_spans(notes)
    return len(spans) > 1 and spans[0][1] < ticks_of_bar(*spans[0][2])


def _write_key(attributes: Element, fifths: int, key: str) -> None:
    element = SubElement(attributes, "key")
    _text(element, "fifths", fifths)
    _text(element, "mode", key.partition(" ")[2])


def _write_clef(attributes: Element, notes: Notes, number: int) -> None:
    clef = SubElement(attributes, "clef")
    if notes.parts[number].is_drums:
        _text(clef, "sign", "percussion")
        return
    low = is_low(notes, number)
    _text(clef, "sign", "F" if low else "G")
    _text(clef, "line", 4 if low else 2)


def _write_tempo(bar: Element, notes: Notes, measure: WrittenMeasure) -> None:
    for onset, bpm in notes.tempo.tolist():
        if not measure.onset <= onset < measure.onset + measure.ticks:
            continue
        shown = f"{bpm:.3f}".rstrip("0").rstrip(".")
        direction = SubElement(bar, "direction", placement="above")
        metronome = SubElement(SubElement(direction, "direction-type"), "metronome")
        _text(metronome, "beat-unit", "quarter")
        _text(metronome, "per-minute", shown)
        _write_offset(direction, onset - measure.onset)
        SubElement(direction, "sound", tempo=shown)


def _write_offset(parent: Element, ticks: int) -> None:
    """How far behind the beginning of the bar something stands."""
    if ticks:
        _text(parent, "offset", ticks).set("sound", "yes")


def _write_chord_symbols(bar: Element, marks: list[NoteMark], measure: WrittenMeasure) -> None:
    for mark in marks:
        inside = measure.onset <= mark.onset < measure.onset + measure.ticks
        chord = chord_name(mark.text) if mark.kind == CHORD_SYMBOL and inside else None
        if chord is None:
            continue
        harmony = SubElement(bar, "harmony")
        root = SubElement(harmony, "root")
        _text(root, "root-step", chord.root)
        if chord.alter:
            _text(root, "root-alter", chord.alter)
        _text(harmony, "kind", chord.kind)
        if chord.bass:
            bass = SubElement(harmony, "bass")
            _text(bass, "bass-step", chord.bass)
            if chord.bass_alter:
                _text(bass, "bass-alter", chord.bass_alter)
        _write_offset(harmony, mark.onset - measure.onset)


def chord_name(figure: str) -> ChordName | None:
    """A chord symbol as MusicXML says it; None for one of a kind that CHORD_KINDS lacks."""
    match = CHORD.fullmatch(figure)
    if not match:
        return None
    root, sign, kind, bass, bass_sign = match.groups()
    word = CHORD_KINDS.get(CHORD_SPELLINGS.get(kind, kind))
    if word is None:
        return None
    return ChordName(root, ALTERS[sign], word, bass, ALTERS[bass_sign or ""])


def _write_voices(
    bar: Element, measure: WrittenMeasure, marks: list[NoteMark], fifths: int
) -> None:
    here: dict[int, list[NoteMark]] = defaultdict(list)
    for mark in marks:
        here[mark.onset].append(mark)
    for voice, written in enumerate(measure.voices):
        if voice:
            _text(SubElement(bar, "backup"), "duration", measure.ticks)
        for note in written:
            begins = note.pitches and not note.tied_from
            own = here.pop(note.onset, []) if begins else []
            _write_chord(bar, note, str(voice + 1), own, fifths)


def _write_chord(
    bar: Element, written: WrittenNote, voice: str, marks: list[NoteMark], fifths: int
) -> None:
    """One <note>, or one for each pitch of a chord, the first with what is written above and below."""
    for place, pitch in enumerate(written.pitches or (None,)):
        note = SubElement(bar, "note")
        if written.velocity:
            note.set("dynamics", f"{written.velocity / LOUD_VELOCITY * 100:.4f}")
        if place:
            SubElement(note, "chord")
        if pitch is None:
            SubElement(note, "rest")
        else:
            _write_pitch(note, pitch, fifths)
        _text(note, "duration", written.ticks)
        ties = [kind for kind, tied in _ties(written) if tied]
        for kind in ties:
            SubElement(note, "tie", type=kind)
        _text(note, "voice", voice)
        _write_value(note, written.ticks)
        fermata = place == 0 and any(mark.kind == PHRASE_END for mark in marks)
        if ties or fermata:
            notations = SubElement(note, "notations")
            for kind in ties:
                SubElement(notations, "tied", type=kind)
            if fermata:
                SubElement(notations, "fermata", type="upright")
        for mark in marks:
            if place == 0 and mark.kind == WORD:
                _write_lyric(note, mark.text)


def _ties(written: WrittenNote) -> tuple[tuple[str, bool], ...]:
    return (("stop", written.tied_from), ("start", written.tied_to))


def _write_pitch(note: Element, pitch: int, fifths: int) -> None:
    name = spelled(pitch, fifths)
    element = SubElement(note, "pitch")
    _text(element, "step", name.letter)
    if name.alter:
        _text(element, "alter", name.alter)
    _text(element, "octave", name.octave)


def _write_value(note: Element, ticks: int) -> None:
    value = NOTE_VALUES[ticks]
    _text(note, "type", value.name)
    for _ in range(value.dots):
        SubElement(note, "dot")
    if value.is_triplet:
        times = SubElement(note, "time-modification")
        _text(times, "actual-notes", 3)
        _text(times, "normal-notes", 2)


def _write_lyric(note: Element, word: str) -> None:
    """A syllable; one that ends in "-" is followed by the rest of its word."""
    lyric = SubElement(note, "lyric", number="1")
    goes_on = word.endswith("-") and len(word) > 1
    _text(lyric, "syllabic", "begin" if goes_on else "single")
    _text(lyric, "text", word[:-1] if goes_on else word)
