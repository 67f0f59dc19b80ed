"""The known part of a piece that is to be completed: what must be said, and where nothing else may be."""

from typing import NamedTuple

import numpy as np

from megajukebox.notes.clock import Clock, places
from megajukebox.notes.events import (
    LENGTHS,
    SHIFTS,
    NoteEvent,
    NoteVocabulary,
    encode,
    in_steps,
    loudness_step,
    on_steps,
)
from megajukebox.notes.grammar import Grammar
from megajukebox.notes.holes import HoleGrid, NoteTable, note_table
from megajukebox.notes.notes import Notes


class BarOrTempo(NamedTuple):
    """A BAR or TEMPO event of the known piece."""

    tick: int
    event: int


class KnownMusic:
    """The notes of a piece outside its holes, its bars and its tempi.

    Raises:
        ValueError: the vocabulary lacks an event of the piece; the message names it.
    """

    def __init__(self, piece: Notes, vocabulary: NoteVocabulary, grid: HoleGrid) -> None:
        self.grid = grid
        self.vocabulary = vocabulary
        self.length = piece.length
        events = encode(piece, vocabulary).astype(np.int64)
        ticks = places(events, vocabulary).tick
        notes = note_table(events, ticks, vocabulary)
        numbers = {part_class: number for number, part_class in enumerate(grid.classes)}
        of_notes = [vocabulary.events[event].part_class for event in notes.event.tolist()]
        columns = np.array([numbers[one] for one in of_notes if one], np.int64)
        known = grid.known(notes.onset, columns)
        self.notes = NoteTable(*(column[known] for column in notes))
        velocities = on_steps(piece).notes["velocity"][known].tolist()
        self.loudness = [loudness_step(velocity) if velocity else -1 for velocity in velocities]
        self.frame: list[BarOrTempo] = []
        for tick, event in zip(ticks.tolist(), events.tolist()):
            if vocabulary.events[event].kind in ("BAR", "TEMPO"):
                self.frame.append(BarOrTempo(tick, event))


class KnownCursor:
    """How much of some known music a growing piece has said."""

    def __init__(self, known: KnownMusic, grammar: Grammar) -> None:
        self.known = known
        self.grammar = grammar
        self.note = 0  # the next one to say
        self.bar_or_tempo = 0
        self.tail: list[int] = []  # what must follow the known NOTE that was just said

    def push(self, clock: Clock, event: int) -> None:
        """Follow `event`, which is about to be pushed into `clock`."""
        if self.tail:
            assert self.tail[0] == event, "a known note is said as it is"
            self.tail.pop(0)
        elif self._next_onset() == clock.tick and self.known.notes.event[self.note] == event:
            self.tail = self._tail(clock)
            self.note += 1
        elif self._due(clock) == event:
            self.bar_or_tempo += 1

    def _tail(self, clock: Clock) -> list[int]:
        """LOUD, where it changes, and LENGTH of the next known note."""
        numbers = self.known.vocabulary.numbers
        part_class = self.known.vocabulary.events[int(self.known.notes.event[self.note])].part_class
        assert part_class
        loudness = self.known.loudness[self.note]
        words = []
        if (
            self.known.vocabulary.loudness
            and loudness >= 0
            and clock.loudness.get(part_class) != loudness
        ):
            words.append(NoteEvent("LOUD", loudness))
        length = int(self.known.notes.length[self.note])
        words += [NoteEvent("LENGTH", ticks) for ticks in in_steps(length, LENGTHS)]
        return [numbers[word] for word in words]

    def _next_onset(self) -> int:
        """Of the next known note; -1 after the last."""
        onsets = self.known.notes.onset
        return int(onsets[self.note]) if self.note < len(onsets) else -1

    def _due(self, clock: Clock) -> int:
        """The bar line or tempo that must be said now; -1: none."""
        if self.bar_or_tempo < len(self.known.frame):
            tick, event = self.known.frame[self.bar_or_tempo]
            if tick <= clock.tick:
                return event
        return -1

    def restrict(self, clock: Clock, mask: np.ndarray) -> None:
        """Take from `mask`, the events that the grammar allows, what would contradict the known music."""
        if self.tail:
            only(mask, self.tail[0])
        elif clock.last in ("NOTE", "LOUD"):
            self._limit_length(clock, mask, 0)
        elif self._due(clock) >= 0:
            only(mask, self._due(clock))
        else:
            if clock.last == "LENGTH":
                self._limit_length(clock, mask, clock.run)
            self._between_notes(clock, mask)

    def _limit_length(self, clock: Clock, mask: np.ndarray, said: int) -> None:
        """A note ends where its part is known again; a known one is as long as it is."""
        onset, part_class = clock.notes[-1][:2]
        grid = self.known.grid
        until = onset
        if part_class in grid.open_at(onset):
            until = grid.open_until(part_class, onset)
        grammar = self.grammar
        mask[grammar.length_numbers[said + grammar.length_ticks > until - onset]] = False

    def _between_notes(self, clock: Clock, mask: np.ndarray) -> None:
        grammar = self.grammar
        if clock.tick < self.known.length:
            mask[grammar.of_kind.get("BAR", [])] = False
            mask[grammar.of_kind["TEMPO"]] = False
        rows = grammar.rows_of_classes(self.known.grid.open_at(clock.tick))
        numbers = grammar.note_numbers
        mask[numbers[~rows]] = False
        if self._next_onset() == clock.tick:
            event = int(self.known.notes.event[self.note])
            rank = grammar.ranks[grammar.row_of[event]]
            mask[numbers[grammar.ranks >= rank]] = False
            mask[event] = True
            mask[grammar.shift_numbers] = False
            mask[grammar.of_kind["END"]] = False
            return
        ahead = [onset for onset in (self._next_onset(), self._next_bar_or_tempo()) if onset >= 0]
        if ahead:
            mask[grammar.of_kind["END"]] = False
            left = min(ahead) - clock.tick
            mask[grammar.shift_numbers[grammar.shift_ticks > left]] = False
            # Whatever a sum is usually written as, the next known event is reached.
            step = in_steps(left, SHIFTS)[0]
            mask[self.known.vocabulary.numbers[NoteEvent("SHIFT", step)]] = True

    def _next_bar_or_tempo(self) -> int:
        """Its tick; -1 after the last."""
        left = self.known.frame[self.bar_or_tempo :]
        return left[0].tick if left else -1


def only(mask: np.ndarray, event: int) -> None:
    """Allow this one alone."""
    mask[:] = False
    mask[event] = True
