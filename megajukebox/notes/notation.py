"""What sheets write of a piece: measures, voices, note values that can be printed, and names of pitches.

The writers of MusicXML (musicxml.py) and ABC (abc.py) share it.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from megajukebox.notes.notes import Notes, bars_of_metre, ticks_of_bar


class NoteValue(NamedTuple):
    """How a length is printed."""

    name: str  # of MusicXML's <type>
    dots: int = 0
    is_triplet: bool = False  # three in the time of two


# Ticks of every value that is printed, the longest first. 24 ticks are a quarter.
PLAIN_VALUES = {
    144: NoteValue("whole", 1),
    96: NoteValue("whole"),
    72: NoteValue("half", 1),
    48: NoteValue("half"),
    36: NoteValue("quarter", 1),
    24: NoteValue("quarter"),
    18: NoteValue("eighth", 1),
    12: NoteValue("eighth"),
    9: NoteValue("16th", 1),
    6: NoteValue("16th"),
    3: NoteValue("32nd"),
}
TRIPLET_VALUES = {
    32: NoteValue("half", 0, True),
    16: NoteValue("quarter", 0, True),
    8: NoteValue("eighth", 0, True),
    4: NoteValue("16th", 0, True),
    2: NoteValue("32nd", 0, True),
    1: NoteValue("64th", 0, True),
}
NOTE_VALUES = {**PLAIN_VALUES, **TRIPLET_VALUES}
FIFTHS_LETTERS = "FCGDAEB"  # each a fifth above the one before
MAX_FIFTHS = 7  # sharps or flats of a key signature
METRE_UNSAID = (4, 4)


class WrittenNote(NamedTuple):
    """A note, a chord or a rest of one printed value; a longer one is several, tied."""

    onset: int  # ticks from the beginning of the piece
    ticks: int  # one of NOTE_VALUES
    pitches: tuple[int, ...]  # empty: a rest
    velocity: int
    tied_from: bool = False  # the same pitches go on from the note before
    tied_to: bool = False


class WrittenMeasure(NamedTuple):
    """One bar of one part: voices that sound together, each as long as the bar."""

    onset: int
    ticks: int
    metre: tuple[int, int]
    voices: tuple[tuple[WrittenNote, ...], ...]

    @property
    def is_short(self) -> bool:
        """A pickup, or a bar that the piece ends in."""
        return self.ticks < ticks_of_bar(*self.metre)


class Spelling(NamedTuple):
    """A pitch as a sheet names it."""

    letter: str
    alter: int  # semitones: 1 a sharp, -1 a flat
    octave: int  # 4 begins with middle C


def printed_values(ticks: int) -> list[int]:
    """Values, all in NOTE_VALUES, that add up to a length: at most one of them of triplets, and that one last."""
    values = []
    triplet = 0
    if ticks % 3:
        fitting = [value for value in TRIPLET_VALUES if value <= ticks]
        triplet = next(value for value in fitting if (ticks - value) % 3 == 0)
    rest = ticks - triplet
    while rest:
        value = next(value for value in PLAIN_VALUES if value <= rest)
        values.append(value)
        rest -= value
    return [*values, triplet] if triplet else values


def measure_spans(notes: Notes) -> list[tuple[int, int, tuple[int, int]]]:
    """(onset, ticks, metre) of every bar to the end of the piece; music without bars gets bars of 4/4."""
    bars = notes.bars if len(notes.bars) else bars_of_metre(*METRE_UNSAID, notes.length)
    onsets = [*bars["onset"].tolist(), max(notes.length, int(bars["onset"][-1]) + 1)]
    spans = []
    for row, (start, end) in enumerate(pairwise(onsets)):
        metre = (int(bars["numerator"][row]), int(bars["denominator"][row]))
        whole = ticks_of_bar(*metre)
        for onset in range(start, end, whole):  # what is longer than its metre is divided
            spans.append((onset, min(whole, end - onset), metre))
    return spans


def voices_of(notes: Notes, part: int) -> list[list[WrittenNote]]:
    """The part's chords, in voices within which none begins before the last has ended. Not yet cut at bars."""
    table = notes.notes[notes.notes["part"] == part]
    chords: dict[tuple[int, int, int], list[int]] = {}
    for onset, _, pitch, length, velocity in table.tolist():
        chords.setdefault((onset, length, velocity), []).append(pitch)
    voices: list[list[WrittenNote]] = []
    for (onset, length, velocity), pitches in sorted(chords.items()):
        chord = WrittenNote(onset, length, tuple(pitches), velocity)
        for voice in voices:
            if voice[-1].onset + voice[-1].ticks <= onset:
                voice.append(chord)
                break
        else:
            voices.append([chord])
    return voices or [[]]


def measures_of(notes: Notes, part: int, layer: int | None = None) -> Iterator[WrittenMeasure]:
    """Every bar of a part with the voices that sound in it, the first always; with `layer` that voice alone."""
    voices = voices_of(notes, part)
    if layer is not None:
        voices = [voices[layer]]
    places = [0] * len(voices)  # of the first chord of each voice that has not ended
    for onset, ticks, metre in measure_spans(notes):
        written = []
        for number, voice in enumerate(voices):
            while places[number] < len(voice) and _end(voice[places[number]]) <= onset:
                places[number] += 1
            inside = []
            for chord in voice[places[number] :]:
                if chord.onset >= onset + ticks:
                    break
                inside.append(chord)
            if inside or number == 0:
                written.append(tuple(_cut_to_values(inside, onset, onset + ticks)))
        yield WrittenMeasure(onset, ticks, metre, tuple(written))


def _end(chord: WrittenNote) -> int:
    return chord.onset + chord.ticks


def _cut_to_values(chords: list[WrittenNote], start: int, end: int) -> Iterator[WrittenNote]:
    """Chords and the rests between them, from `start` to `end`, in printed values."""
    now = start
    for chord in chords:
        yield from _rests(now, chord.onset)
        onset = max(chord.onset, start)
        until = min(_end(chord), end)
        for value in printed_values(until - onset):
            yield chord._replace(
                onset=onset,
                ticks=value,
                tied_from=onset > chord.onset,
                tied_to=onset + value < _end(chord),
            )
            onset += value
        now = until
    yield from _rests(now, end)


def _rests(start: int, end: int) -> Iterator[WrittenNote]:
    for value in printed_values(max(end - start, 0)):
        yield WrittenNote(start, value, (), 0)
        start += value


def key_fifths(key: str) -> int | None:
    """Sharps (flats below 0) of "D minor"; None for no key, or one that no signature has."""
    tonic, _, mode = key.partition(" ")
    if not tonic or tonic[0] not in FIFTHS_LETTERS or set(tonic[1:]) - {"#", "b"}:
        return None
    if mode not in ("major", "minor"):
        return None
    alter = tonic.count("#") - tonic.count("b")
    fifths = FIFTHS_LETTERS.index(tonic[0]) - 1 + 7 * alter - 3 * (mode == "minor")
    return fifths if abs(fifths) <= MAX_FIFTHS else None


def spelled(pitch: int, fifths: int) -> Spelling:
    """The name that fits a key: its scale, and of the other tones those that lead within it.

    On the line of fifths these are the twelve names from three below the key's tonic (in C: E flat) to eight above it
    (G sharp).
    """
    lowest = fifths - 3
    place = lowest + (7 * pitch - lowest) % 12  # a fifth is 7 semitones, and 7 x 7 = 1 modulo 12
    alter = (place + 1) // 7
    letter = FIFTHS_LETTERS[(place + 1) % 7]
    return Spelling(letter, alter, (pitch - alter) // 12 - 1)


def signature_alter(letter: str, fifths: int) -> int:
    """What a key signature does to a letter: 1, 0 or -1."""
    place = FIFTHS_LETTERS.index(letter)
    if fifths > 0:
        return int(place < fifths)
    return -int(6 - place < -fifths)


def is_low(notes: Notes, part: int) -> bool:
    """Whether a part is read best in the bass clef."""
    pitches = notes.notes["pitch"][notes.notes["part"] == part]
    return bool(len(pitches)) and float(np.mean(pitches)) < 57  # A below middle C
