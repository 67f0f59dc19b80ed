"""Notes as a sequence of events; `clock.decode` is the way back, exactly.

    BAR 3/4   a bar line, with the metre of the bar that begins
    TEMPO     a tempo, one of 48 steps
    SHIFT     time goes on; several in a row add up, the largest first
    NOTE      a part and a pitch in one event, as MuseNet's (OpenAI 2019)
    LOUD      how loud the part's notes are from here on
    LENGTH    of the note before; several in a row add up, the largest first

Lengths are told with the notes, so no note can sound for ever. Within a tick: bar, tempo, then notes in the order of
their parts and pitches. `decode(encode(notes))` is `notes.canonical()` with tempo and loudness on their steps.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from megajukebox.notes.instruments import DRUMS_FAMILY, FAMILIES, ScorePart, program_of
from megajukebox.notes.notes import (
    BAR,
    PITCHES,
    TICKS_PER_QUARTER,
    Notes,
    in_order,
    ticks_of_bar,
)

PAD, END = 0, 1
SPECIALS = 2  # events that every vocabulary begins with
MAX_VOCABULARY = 8192
NOTES_VOCABULARY = "notes_vocabulary.json"  # beside a composer's weights
# Whole steps up to a quarter, then ever wider ones; what lies between is a sum of two or more.
SHIFTS = (*range(1, TICKS_PER_QUARTER + 1), 30, 36, 48, 72, 96)
LENGTHS = (*range(1, TICKS_PER_QUARTER + 1), 30, 36, 42, 48, 60, 72, 84, 96, 144, 192, 288, 384)
LOUDNESS_STEPS = 16
VELOCITIES_A_STEP = PITCHES // LOUDNESS_STEPS
TEMPO_STEPS = 48
LOWEST_BPM, HIGHEST_BPM = (
    20.0,
    320.0,
)  # six steps to twice the tempo; played pieces' 250 lies within
MAX_ORDINAL = 8  # parts of one family that are told apart
PLACES = 96  # of a bar that a model is told: ticks of 4/4; longer bars stay at the last
BARS_TOLD = 8  # a bar's number is told modulo this: phrases have four or eight
CHORD_TOLD = 8  # notes already in this chord


class PartClass(NamedTuple):
    """What a NOTE says of its part: the family, and which one of them, from 0 on."""

    family: str
    ordinal: int


def part_classes(parts: Sequence[ScorePart]) -> list[PartClass]:
    """The class of each part: what its name says, if it is a name that `class_name` gives, else the next of its family.

    Parts beyond MAX_ORDINAL of one family share the last class.
    """
    named = [_named_class(part) for part in parts]
    taken = {part_class for part_class in named if part_class}
    classes = []
    for part, named_class in zip(parts, named):
        part_class = named_class
        if part_class is None:
            free = (PartClass(part.family, ordinal) for ordinal in range(MAX_ORDINAL))
            last = PartClass(part.family, MAX_ORDINAL - 1)
            part_class = next((one for one in free if one not in taken), last)
            taken.add(part_class)
        classes.append(part_class)
    return classes


def class_name(part_class: PartClass) -> str:
    """The name of a part of this class: `voice 1` is the highest of a choir."""
    return f"{part_class.family} {part_class.ordinal + 1}"


def _named_class(part: ScorePart) -> PartClass | None:
    for ordinal in range(MAX_ORDINAL):
        if part.name == class_name(PartClass(part.family, ordinal)):
            return PartClass(part.family, ordinal)
    return None


def tempo_step(bpm: float) -> int:
    """The nearest step, 0 to TEMPO_STEPS - 1, on a scale of ratios."""
    share = np.log(bpm / LOWEST_BPM) / np.log(HIGHEST_BPM / LOWEST_BPM)
    return int(np.clip(np.round(share * (TEMPO_STEPS - 1)), 0, TEMPO_STEPS - 1))


def bpm_of_step(step: int) -> float:
    ratio = (HIGHEST_BPM / LOWEST_BPM) ** (step / (TEMPO_STEPS - 1))
    return float(np.float32(round(LOWEST_BPM * ratio, 3)))


def loudness_step(velocity: int) -> int:
    return velocity // VELOCITIES_A_STEP


def velocity_of_step(step: int) -> int:
    """The middle of the step."""
    return step * VELOCITIES_A_STEP + VELOCITIES_A_STEP // 2


class NoteEvent(NamedTuple):
    """One event in words. What each kind uses: BAR numerator, denominator; TEMPO, SHIFT, LENGTH, LOUD a step or ticks
    (`value`); NOTE a class and a pitch (`value`)."""

    kind: str
    value: int = 0
    other: int = 0
    part_class: PartClass | None = None


KINDS = ("PAD", "END", "BAR", "TEMPO", "SHIFT", "NOTE", "LOUD", "LENGTH")


@dataclass(frozen=True)
class NoteVocabulary:
    """The events that a corpus needs, numbered; stored beside a model's weights as `notes_vocabulary.json`."""

    metres: tuple[tuple[int, int], ...]
    notes: tuple[tuple[PartClass, int], ...]  # class and pitch
    loudness: bool  # whether velocities are told

    def __post_init__(self) -> None:
        if self.size > MAX_VOCABULARY:
            raise ValueError(f"needs {self.size} events, more than {MAX_VOCABULARY}")

    @classmethod
    def of(cls, pieces: Iterable[Notes]) -> "NoteVocabulary":
        """Of what pieces use."""
        metres: set[tuple[int, int]] = set()
        notes: set[tuple[PartClass, int]] = set()
        loudness = False
        for piece in map(on_steps, pieces):
            metres |= {(int(bar["numerator"]), int(bar["denominator"])) for bar in piece.bars}
            loudness = loudness or bool(piece.notes["velocity"].any())
            classes = part_classes(piece.parts)
            pairs = np.unique(piece.notes[["part", "pitch"]])
            notes |= {(classes[part], pitch) for part, pitch in pairs.tolist()}
        return cls(tuple(sorted(metres)), tuple(sorted(notes)), loudness)

    @classmethod
    def joined(cls, vocabularies: Iterable["NoteVocabulary"]) -> "NoteVocabulary":
        """What several have together."""
        metres: set[tuple[int, int]] = set()
        notes: set[tuple[PartClass, int]] = set()
        loudness = False
        for one in vocabularies:
            metres |= set(one.metres)
            notes |= set(one.notes)
            loudness = loudness or one.loudness
        return cls(tuple(sorted(metres)), tuple(sorted(notes)), loudness)

    @cached_property
    def events(self) -> tuple[NoteEvent, ...]:
        """By number."""
        events = [NoteEvent("PAD"), NoteEvent("END")]
        events += [NoteEvent("BAR", *metre) for metre in self.metres]
        events += [NoteEvent("TEMPO", step) for step in range(TEMPO_STEPS)]
        events += [NoteEvent("SHIFT", ticks) for ticks in SHIFTS]
        if self.loudness:
            events += [NoteEvent("LOUD", step) for step in range(LOUDNESS_STEPS)]
        events += [NoteEvent("LENGTH", ticks) for ticks in LENGTHS]
        events += [NoteEvent("NOTE", pitch, 0, part_class) for part_class, pitch in self.notes]
        return tuple(events)

    @cached_property
    def numbers(self) -> dict[NoteEvent, int]:
        """Of each event."""
        return {event: number for number, event in enumerate(self.events)}

    def transposed(self, semitones: Iterable[int]) -> "NoteVocabulary":
        """With every note of every pitched part moved by each of `semitones` too."""
        notes = set(self.notes)
        for part_class, pitch in self.notes:
            if part_class.family != DRUMS_FAMILY:
                moved = (pitch + step for step in semitones)
                notes |= {(part_class, one) for one in moved if 0 <= one < PITCHES}
        return NoteVocabulary(self.metres, tuple(sorted(notes)), self.loudness)

    @property
    def size(self) -> int:
        kinds = len(SHIFTS) + len(LENGTHS) + TEMPO_STEPS + self.loudness * LOUDNESS_STEPS
        return SPECIALS + len(self.metres) + kinds + len(self.notes)

    def to_json(self) -> dict[str, Any]:
        notes = [[c.family, c.ordinal, pitch] for c, pitch in self.notes]
        return {"metres": list(map(list, self.metres)), "notes": notes, "loudness": self.loudness}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "NoteVocabulary":
        """Raises ValueError where it is none."""
        try:
            metres = tuple((int(n), int(d)) for n, d in stored["metres"])
            notes = tuple(
                (PartClass(str(family), int(ordinal)), int(pitch))
                for family, ordinal, pitch in stored["notes"]
            )
            if any(part_class.family not in FAMILIES for part_class, _ in notes):
                raise ValueError("names a family of instruments that is unknown")
            return cls(metres, notes, bool(stored["loudness"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"is no vocabulary of notes: {error!r}") from None


def in_steps(total: int, steps: Sequence[int]) -> list[int]:
    """Steps that add up to `total`, the largest first."""
    parts = []
    for step in reversed(steps):
        while total >= step:
            parts.append(step)
            total -= step
    return parts


def on_steps(notes: Notes) -> Notes:
    """What events can say of a piece.

    Programs by their family, parts in the order of families and named after them, those without notes left out; tempi
    and loudness on their steps, loudness that is not said as it was before; bars to the end. Marks and key are no events.
    """
    used = np.unique(notes.notes["part"]).tolist()
    notes = notes.only(used).canonical()
    classes = part_classes(notes.parts)
    order = sorted(range(len(used)), key=lambda part: (class_rank(classes[part]), part))
    notes = notes.only(order)
    classes = [classes[part] for part in order]
    numbers = {part_class: number for number, part_class in enumerate(dict.fromkeys(classes))}
    parts = [ScorePart(class_name(c), program_of(c.family)) for c in numbers]
    table = notes.notes.copy()
    table["part"] = [numbers[classes[part]] for part in table["part"].tolist()]
    tempo = notes.tempo.copy()
    tempo["bpm"] = [bpm_of_step(tempo_step(bpm)) for bpm in tempo["bpm"].tolist()]
    changes = np.concatenate([[True], np.diff(tempo["bpm"]) != 0])
    table = in_order(table)
    table["velocity"] = _loudness_on_steps(table)
    bars = _bars_to_end(notes.bars, notes.length)
    return Notes(table, tuple(parts), bars, tempo[changes], notes.length)


def class_rank(part_class: PartClass) -> tuple[int, int]:
    """Parts stand in this order: drums, then by family, those of one family as they are numbered."""
    if part_class.family == DRUMS_FAMILY:
        return -1, part_class.ordinal
    return FAMILIES.index(part_class.family), part_class.ordinal


def _loudness_on_steps(table: np.ndarray) -> list[int]:
    last: dict[int, int] = {}
    velocities = []
    for part, velocity in zip(table["part"].tolist(), table["velocity"].tolist()):
        if velocity:
            last[part] = velocity_of_step(loudness_step(velocity))
        velocities.append(last.get(part, 0))
    return velocities


def _bars_to_end(bars: np.ndarray, length: int) -> np.ndarray:
    """Bars that cover the whole piece: none longer than its metre, the last one followed by more like it."""
    rows = []
    ends = [*bars["onset"].tolist()[1:], length]
    for (onset, numerator, denominator), end in zip(bars.tolist(), ends):
        whole = max(1, ticks_of_bar(numerator, denominator))
        starts = range(onset, max(end, onset + 1), whole)
        rows += [(start, numerator, denominator) for start in starts if start < max(length, 1)]
    return np.array(rows, BAR)


def encode(notes: Notes, vocabulary: NoteVocabulary) -> np.ndarray:
    """int32 [events], the last of them END.

    Raises:
        ValueError: the vocabulary lacks an event of the piece; the message names it.
    """
    notes = on_steps(notes)
    events: list[NoteEvent] = []
    now = 0
    last_loudness: dict[int, int] = {}
    classes = part_classes(notes.parts)
    for onset, rows in _by_onset(notes):
        events += [NoteEvent("SHIFT", ticks) for ticks in in_steps(onset - now, SHIFTS)]
        now = onset
        events += rows.others
        for note in rows.notes:
            _, part, pitch, length, velocity = note
            events.append(NoteEvent("NOTE", pitch, 0, classes[part]))
            step = loudness_step(velocity)
            if vocabulary.loudness and velocity and last_loudness.get(part) != step:
                events.append(NoteEvent("LOUD", step))
                last_loudness[part] = step
            events += [NoteEvent("LENGTH", ticks) for ticks in in_steps(length, LENGTHS)]
    events += [NoteEvent("SHIFT", ticks) for ticks in in_steps(notes.length - now, SHIFTS)]
    events.append(NoteEvent("END"))
    try:
        return np.array([vocabulary.numbers[event] for event in events], np.int32)
    except KeyError as error:
        raise ValueError(f"has an event that the vocabulary lacks: {error.args[0]}") from None


class _Tick(NamedTuple):
    others: list[NoteEvent]  # bar line and tempo
    notes: list[tuple[int, int, int, int, int]]


def _by_onset(notes: Notes) -> list[tuple[int, _Tick]]:
    ticks: dict[int, _Tick] = {}

    def at(onset: int) -> _Tick:
        return ticks.setdefault(onset, _Tick([], []))

    for onset, numerator, denominator in notes.bars.tolist():
        at(onset).others.append(NoteEvent("BAR", numerator, denominator))
    for onset, bpm in notes.tempo.tolist():
        at(onset).others.append(NoteEvent("TEMPO", tempo_step(bpm)))
    for note in notes.notes.tolist():
        at(note[0]).notes.append(note)
    return sorted(ticks.items())
