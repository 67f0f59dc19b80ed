"""Which events may come next: what keeps every drawn piece a piece, and its events those that `encode` would write."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from megajukebox.notes.clock import Clock
from megajukebox.notes.events import (
    END,
    LENGTHS,
    MAX_ORDINAL,
    SHIFTS,
    NoteEvent,
    NoteVocabulary,
    PartClass,
    class_rank,
    in_steps,
)
from megajukebox.notes.notes import MAX_PARTS, PITCHES

SINGERS = "voice"  # of this family a part sings one note at a time


@cache
def goes_on(total: int, steps: tuple[int, ...]) -> tuple[int, ...]:
    """Steps that may follow steps which add up to `total`: those with which the sum is still written as `in_steps` does."""
    written = in_steps(total, steps)
    return tuple(step for step in steps if in_steps(total + step, steps) == [*written, step])


@dataclass(frozen=True)
class Bounds:
    """What a piece that is drawn must keep to, beside the grammar."""

    length: int = 0  # ticks of the whole; 0: as long as it likes
    families: frozenset[str] = frozenset()  # of instruments; empty: any
    whole_bars: bool = (
        True  # bars are as long as their metre; a pickup can be given as the beginning
    )


ANY = Bounds(whole_bars=False)


class Grammar:
    """Of one vocabulary: masks over its events."""

    def __init__(self, vocabulary: NoteVocabulary) -> None:
        self.vocabulary = vocabulary
        events = vocabulary.events
        self.size = len(events)
        self.of_kind = {kind: self._numbers(kind) for kind in {event.kind for event in events}}
        note_events = [events[number] for number in self.of_kind.get("NOTE", ())]
        self.notes = [(event.part_class, event.value) for event in note_events]
        self.note_numbers = self.of_kind.get("NOTE", np.zeros(0, np.int64))
        self.row_of = {number: row for row, number in enumerate(self.note_numbers.tolist())}
        self.shift_numbers = self.of_kind["SHIFT"]
        self.shift_ticks = np.array([events[number].value for number in self.shift_numbers])
        self.length_numbers = self.of_kind["LENGTH"]
        self.length_ticks = np.array([events[number].value for number in self.length_numbers])
        self.classes = [part_class for part_class, _ in self.notes if part_class]
        # In the order in which the notes of a tick stand.
        self.ranks = np.array([self._rank(c, pitch) for c, pitch in self.notes if c], np.int64)
        self._rows: dict[frozenset[PartClass], np.ndarray] = {}
        self.index = {note: row for row, note in enumerate(self.notes)}

    def _numbers(self, kind: str) -> np.ndarray:
        events = enumerate(self.vocabulary.events)
        return np.array([number for number, event in events if event.kind == kind], np.int64)

    @staticmethod
    def _rank(part_class: PartClass, pitch: int) -> int:
        family, ordinal = class_rank(part_class)
        return ((family + 1) * MAX_ORDINAL + ordinal) * PITCHES + pitch

    def legal(self, clock: Clock, bounds: Bounds = ANY) -> np.ndarray:
        """bool [vocabulary]: which events may follow. Of every legal beginning there is at least one."""
        mask = np.zeros(self.size, bool)
        if clock.ended:
            return mask
        if clock.last in ("NOTE", "LOUD"):
            self._after_note(clock, mask)
        elif clock.last == "":
            mask[self.of_kind["TEMPO"]] = True
            mask[self.of_kind.get("BAR", [])] = True
        else:
            self._between_notes(clock, mask)
        if bounds is not ANY:
            self._keep_within(bounds, clock, mask)
        return mask

    def rows_of_classes(self, classes: frozenset[PartClass]) -> np.ndarray:
        """bool [notes]: which of the vocabulary's notes are of these parts."""
        if classes not in self._rows:
            self._rows[classes] = np.array([one in classes for one in self.classes], bool)
        return self._rows[classes]

    def _keep_within(self, bounds: Bounds, clock: Clock, mask: np.ndarray) -> None:
        """Take away what would break `bounds`, and end the piece when it is as long as it is to be."""
        bars: np.ndarray = self.of_kind.get("BAR", np.zeros(0, np.int64))
        if bounds.whole_bars and clock.bars and clock.tick < clock.bar_onset + clock.bar_ticks:
            mask[bars] = False
        if bounds.families:
            allowed = frozenset(c for c in self.classes if c.family in bounds.families)
            mask[self.note_numbers[~self.rows_of_classes(allowed)]] = False
        singing = set()
        for (part_class, _), until in clock.sounding.items():
            if part_class.family == SINGERS and until > clock.tick:
                singing.add(part_class)
        if singing:
            mask[self.note_numbers[self.rows_of_classes(frozenset(singing))]] = False
        if bounds.length:
            self._end_at(bounds.length, clock, mask, bars)

    def _end_at(self, length: int, clock: Clock, mask: np.ndarray, bars: np.ndarray) -> None:
        left = length - clock.tick
        before = clock.run if clock.last == "LENGTH" else 0
        mask[self.length_numbers[before + self.length_ticks > left]] = False
        mask[self.shift_numbers[self.shift_ticks > left]] = False
        room = clock.bar_onset + clock.bar_ticks - clock.tick if clock.bars else left
        if clock.last == "SHIFT" and left <= room:  # whatever the sum is usually written as
            mask[self.shift_numbers[self.shift_ticks == left]] = True
        if clock.last not in ("NOTE", "LOUD"):
            mask[END] = left <= 0
        if left <= 0:
            mask[self.note_numbers] = False
            mask[bars] = False
            mask[self.of_kind["TEMPO"]] = False

    def _after_note(self, clock: Clock, mask: np.ndarray) -> None:
        mask[self.of_kind["LENGTH"]] = True
        if clock.last == "NOTE" and self.vocabulary.loudness:
            mask[self.of_kind["LOUD"]] = True
            # Loudness is told where it changes.
            told = clock.notes[-1][4]
            if told >= 0:
                mask[self.vocabulary.numbers[NoteEvent("LOUD", told)]] = False

    def _between_notes(self, clock: Clock, mask: np.ndarray) -> None:
        numbers = self.vocabulary.numbers
        if clock.last == "LENGTH":
            for ticks in goes_on(clock.run, LENGTHS):
                mask[numbers[NoteEvent("LENGTH", ticks)]] = True
        bar_is_over = bool(clock.bars) and clock.tick == clock.bar_onset + clock.bar_ticks
        if clock.last == "SHIFT":
            # A new metre may cut a bar short; when the bar is over a new one must begin.
            mask[self.of_kind.get("BAR", [])] = bool(clock.bars)
        if clock.tick >= clock.end:
            mask[END] = bool(clock.tempo)
        if bar_is_over:
            return
        if clock.last in ("SHIFT", "BAR"):
            mask[self.of_kind["TEMPO"]] = True
            if clock.tempo:
                mask[numbers[NoteEvent("TEMPO", clock.tempo[-1][1])]] = False
        if not clock.tempo:  # it stands at the beginning
            return
        self._notes(clock, mask)
        room = clock.bar_onset + clock.bar_ticks - clock.tick if clock.bars else max(SHIFTS)
        for ticks in goes_on(clock.run, SHIFTS) if clock.last == "SHIFT" else SHIFTS:
            mask[numbers[NoteEvent("SHIFT", ticks)]] = ticks <= room

    def _notes(self, clock: Clock, mask: np.ndarray) -> None:
        """Notes that stand behind the last one of this tick and do not sound already."""
        allowed = np.ones(len(self.notes), bool)
        if clock.last == "LENGTH":
            last = clock.notes[-1]
            allowed = self.ranks > self._rank(last[1], last[2])
        for note, until in clock.sounding.items():
            if until > clock.tick:
                allowed[self.index[note]] = False
        used = {part_class for part_class, _ in clock.sounding}
        if len(used) >= MAX_PARTS:
            for row, (part_class, _) in enumerate(self.notes):
                allowed[row] &= part_class in used
        mask[self.of_kind.get("NOTE", [])] = allowed
