"""Which events may come next: what keeps every drawn piece a piece, and its events those that `encode` would write."""

from functools import cache

import numpy as np

from megajukebox.notes.events import (
    END,
    LENGTHS,
    MAX_ORDINAL,
    SHIFTS,
    Clock,
    NoteEvent,
    NoteVocabulary,
    PartClass,
    class_rank,
    in_steps,
)
from megajukebox.notes.notes import MAX_PARTS, PITCHES


@cache
def goes_on(total: int, steps: tuple[int, ...]) -> tuple[int, ...]:
    """Steps that may follow steps which add up to `total`: those with which the sum is still written as `in_steps` does."""
    written = in_steps(total, steps)
    return tuple(step for step in steps if in_steps(total + step, steps) == [*written, step])


class Grammar:
    """Of one vocabulary: masks over its events."""

    def __init__(self, vocabulary: NoteVocabulary) -> None:
        self.vocabulary = vocabulary
        events = vocabulary.events
        self.size = len(events)
        self.of_kind = {kind: self._numbers(kind) for kind in {event.kind for event in events}}
        note_events = [events[number] for number in self.of_kind.get("NOTE", ())]
        self.notes = [(event.part_class, event.value) for event in note_events]
        # In the order in which the notes of a tick stand.
        self.ranks = np.array([self._rank(c, pitch) for c, pitch in self.notes if c], np.int64)
        self.index = {note: row for row, note in enumerate(self.notes)}

    def _numbers(self, kind: str) -> np.ndarray:
        events = enumerate(self.vocabulary.events)
        return np.array([number for number, event in events if event.kind == kind], np.int64)

    @staticmethod
    def _rank(part_class: PartClass, pitch: int) -> int:
        family, ordinal = class_rank(part_class)
        return ((family + 1) * MAX_ORDINAL + ordinal) * PITCHES + pitch

    def legal(self, clock: Clock) -> np.ndarray:
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
        return mask

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
