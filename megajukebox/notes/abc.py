"""A piece as ABC (abcnotation.com, standard 2.1): a text that people read, send and paste.

Every part is a voice (V:), or several where its notes overlap. `sheets.read_sheet` reads it back; ABC has no
loudness and no programs, and music21 reads neither its words and decorations nor a tempo behind the first.
"""

from fractions import Fraction

from megajukebox.notes.notation import (
    NOTE_VALUES,
    WrittenMeasure,
    WrittenNote,
    is_low,
    key_fifths,
    measures_of,
    signature_alter,
    spelled,
    voices_of,
)
from megajukebox.notes.notes import CHORD_SYMBOL, PHRASE_END, WORD, NoteMark, Notes

UNIT_TICKS = 6  # of L:1/16
BARS_A_LINE = 4
ACCIDENTALS = {-2: "__", -1: "_", 0: "=", 1: "^", 2: "^^"}
MIDDLE_OCTAVE = 4  # written in capitals; the next one in small letters


def to_abc(notes: Notes, title: str = "") -> str:
    """The piece as the text of an .abc file.

    What is lost is what `written_losses` says.
    """
    first = next(measures_of(notes, 0)).metre if notes.parts else (4, 4)
    key = notes.key if key_fifths(notes.key) is not None else ""
    tonic, _, mode = key.partition(" ")
    lines = [
        "X:1",
        f"T:{one_line(title) or 'Untitled'}",
        f"M:{first[0]}/{first[1]}",
        "L:1/16",
        f"Q:1/4={_number(notes.tempo['bpm'][0])}",
    ]
    lines.append(f"K:{tonic}{'m' * (mode == 'minor')}" if tonic else "K:none")
    number = 0
    for part, score_part in enumerate(notes.parts):
        name = one_line(score_part.name).replace('"', "'")
        clef = "bass" if is_low(notes, part) else "treble"
        for layer in range(len(voices_of(notes, part))):
            number += 1
            lines.append(f'V:{number} name="{name}" clef={clef}')
            lines += _Voice(notes, part, layer, is_first=number == 1).lines()
    return "\n".join(lines) + "\n"


def one_line(text: str) -> str:
    """Free text where a line's end would begin another field; "%" would begin a comment."""
    return " ".join(text.replace("%", " ").split())


def _number(value: float) -> str:
    return f"{float(value):.3f}".rstrip("0").rstrip(".")


class _Voice:
    """One voice of a part as lines of ABC; only the first of the piece says where the tempo changes."""

    def __init__(self, notes: Notes, part: int, layer: int, is_first: bool) -> None:
        self.part = part
        self.layer = layer
        self.notes = notes
        self.fifths = key_fifths(notes.key) or 0
        self.tempo = dict(notes.tempo.tolist()[1:]) if is_first else {}
        self.marks: dict[int, list[NoteMark]] = {}
        for mark in notes.marks:
            if mark.part == part:
                self.marks.setdefault(mark.onset, []).append(mark)

    def lines(self) -> list[str]:
        """Lines of a few bars, each followed by the words that are sung in it."""
        measures = list(measures_of(self.notes, self.part, self.layer))
        lines = []
        metre = measures[0].metre if measures else (4, 4)
        for start in range(0, len(measures), BARS_A_LINE):
            bars = []
            words: list[str] = []
            for measure in measures[start : start + BARS_A_LINE]:
                sign = ""
                if measure.metre != metre:
                    sign = f"[M:{measure.metre[0]}/{measure.metre[1]}]"
                    metre = measure.metre
                bars.append(sign + self.bar(measure, words))
            is_last = start + BARS_A_LINE >= len(measures)
            lines.append(" | ".join(bars) + (" |]" if is_last else " |"))
            if set(words) - {"*"}:
                lines.append("w: " + " ".join(words))
        return lines

    def bar(self, measure: WrittenMeasure, words: list[str]) -> str:
        """One bar; `words` grows by the syllable of each note, "*" for none."""
        altered: dict[str, int] = {}  # letters that had a sign in this bar
        texts = []
        for written in measure.voices[0]:
            begins = bool(written.pitches) and not written.tied_from
            texts.append(self.above(written, begins) + self.chord(written, altered))
            if begins:
                words.append(self.syllable(written))
            elif written.pitches:  # of a tie: what is sung goes on
                words.append("_" if words and words[-1] != "*" else "*")
        return " ".join(texts)

    def above(self, written: WrittenNote, begins: bool) -> str:
        """A change of tempo, chord symbols and fermatas before a note."""
        text = ""
        if written.onset in self.tempo:
            text = f"[Q:1/4={_number(self.tempo[written.onset])}]"
        for mark in self.marks.get(written.onset, ()) if begins else ():
            if mark.kind == CHORD_SYMBOL:
                figure = one_line(mark.text).replace('"', "'").replace("-", "b")
                text += f'"{figure}"'
            elif mark.kind == PHRASE_END:
                text += "!fermata!"
        return text

    def syllable(self, written: WrittenNote) -> str:
        """What w: says at a note: "-" at its end joins the next one, a blank within is "~"."""
        for mark in self.marks.get(written.onset, ()):
            if mark.kind == WORD:
                goes_on = mark.text.endswith("-")
                text = one_line(mark.text.removesuffix("-")).replace(" ", "~")
                for sign in "*_|-":
                    text = text.replace(sign, "\\-" if sign == "-" else "")
                return (text or "*") + "-" * goes_on
        return "*"

    def chord(self, written: WrittenNote, altered: dict[str, int]) -> str:
        """A rest, a note or a chord with its length; a triplet's value stands in a tuplet of its own."""
        value = NOTE_VALUES[written.ticks]
        units = Fraction(written.ticks, UNIT_TICKS)
        length = _length(units * 3 / 2 if value.is_triplet else units)
        prefix = "(3:2:1" if value.is_triplet else ""
        if not written.pitches:
            return f"{prefix}z{length}"
        tie = "-" if written.tied_to else ""
        names = [self.name(pitch, altered) for pitch in written.pitches]
        if len(names) == 1:
            return f"{prefix}{names[0]}{length}{tie}"
        return f"{prefix}[{''.join(names)}]{length}{tie}"

    def name(self, pitch: int, altered: dict[str, int]) -> str:
        """A pitch; its accidental is written where the signature, or the bar so far, says another one."""
        spelling = spelled(pitch, self.fifths)
        letter = spelling.letter
        sign = ""
        if letter in altered or spelling.alter != signature_alter(letter, self.fifths):
            altered[letter] = spelling.alter
            sign = ACCIDENTALS[spelling.alter]
        above = spelling.octave - MIDDLE_OCTAVE
        if above > 0:
            return sign + letter.lower() + "'" * (above - 1)
        return sign + letter + "," * -above


def _length(units: Fraction) -> str:
    """ABC's way: 2 is "2", 1 is nothing, a half "/2"."""
    if units.denominator == 1:
        return "" if units == 1 else str(units)
    top = "" if units.numerator == 1 else str(units.numerator)
    return f"{top}/{units.denominator}"
