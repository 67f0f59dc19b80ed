"""What of a piece is known and what is to be written, and how a composer is told: `HoleGrid` and `score_frames`.

            bar 1   bar 2   bar 3   bar 4
soprano     known   known   known   known        harmonising bars 2 and 3 anew:
alto        known   open    open    known        what is known stays, what is open is written,
tenor       known   open    open    known        parts that are in neither row are silent
bass        known   open    open    known
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from megajukebox.notes.events import KINDS, NoteVocabulary, PartClass, class_rank

FRAME_TICKS = 6  # a sixteenth: what a composer is told lies on frames of this length
NO_END = 1 << 40  # ticks: a hole that no known music follows


@dataclass(frozen=True)
class HoleGrid:
    """Which parts are open when: spans of time by parts.

    The last span reaches on for ever, so that a piece can go on.
    """

    starts: np.ndarray  # ticks at which each span begins, the first 0; int64 [spans]
    classes: tuple[PartClass, ...]  # that the piece has, or is to have
    is_open: np.ndarray  # bool [spans, classes]

    def span_at(self, ticks: np.ndarray | int) -> np.ndarray:
        """The number of the span that holds each tick."""
        return np.maximum(np.searchsorted(self.starts, ticks, side="right") - 1, 0)

    def open_at(self, tick: int) -> frozenset[PartClass]:
        """The parts that are to be written at this tick."""
        row = self.is_open[int(self.span_at(tick))]
        return frozenset(c for c, is_open in zip(self.classes, row.tolist()) if is_open)

    def open_until(self, part_class: PartClass, tick: int) -> int:
        """The tick at which this part, open now, is known again; NO_END if it never is."""
        column = self.is_open[int(self.span_at(tick)) :, self.classes.index(part_class)]
        closed = np.flatnonzero(~column)
        if not len(closed):
            return NO_END
        return int(self.starts[int(self.span_at(tick)) + closed[0]])

    def known(self, onsets: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Which notes are known, bool [notes]: those that begin where their part, a column of the grid, is not open."""
        return ~self.is_open[self.span_at(onsets), columns]


class NoteTable(NamedTuple):
    """The notes of a sequence of events; int64 [notes] each."""

    onset: np.ndarray
    length: np.ndarray
    event: np.ndarray  # number of the NOTE event
    place: np.ndarray  # in the sequence


def note_table(events: np.ndarray, ticks: np.ndarray, vocabulary: NoteVocabulary) -> NoteTable:
    """The notes of `events` [events], of which each stands at one of `ticks` [events]."""
    words = np.array([(KINDS.index(e.kind), e.value) for e in vocabulary.events], np.int64)
    kinds, values = words[events].T
    (places,) = np.nonzero(kinds == KINDS.index("NOTE"))
    said = np.cumsum(np.where(kinds == KINDS.index("LENGTH"), values, 0))
    until = np.append(places[1:], len(events)) - 1
    return NoteTable(ticks[places], said[until] - said[places], events[places], places)


def classes_of(vocabulary: NoteVocabulary) -> tuple[PartClass, ...]:
    """The parts that a vocabulary knows, in the order in which their notes stand."""
    return tuple(sorted({part_class for part_class, _ in vocabulary.notes}, key=class_rank))


class ScoreLayout:
    """The ids by which a composer is told what is known of a frame.

    0 stands for nothing; then come notes that sound, notes that begin, parts that are known here, parts that are open.
    "Known to be silent" and "not known" are two things: without the last two a lone soprano would be an order for a solo.
    """

    def __init__(self, vocabulary: NoteVocabulary) -> None:
        self.classes = classes_of(vocabulary)
        self.numbers = {part_class: number for number, part_class in enumerate(self.classes)}
        self.begins = 1 + vocabulary.size
        self.part_known = 1 + 2 * vocabulary.size
        self.part_open = self.part_known + len(self.classes)
        self.entries = self.part_open + len(self.classes)


def score_frames(
    layout: ScoreLayout,
    grid: HoleGrid,
    notes: NoteTable,
    first_tick: int,
    frames: int,
    slots: int,
) -> np.ndarray:
    """Ids [frames, slots] of what is known from `first_tick` on, 0 in empty slots.

    Args:
        notes: those that are known.
        slots: ids of a frame at most; what is beyond them is left out, parts last.
    """
    ticks = first_tick + FRAME_TICKS * np.arange(frames)
    open_here = grid.is_open[grid.span_at(ticks)]  # [frames, classes]
    parts = np.array([layout.numbers[part_class] for part_class in grid.classes], np.int64)
    part_ids = np.where(open_here, layout.part_open, layout.part_known) + parts
    where = [np.repeat(np.arange(frames), len(parts))]
    ids = [part_ids.ravel()]

    first = (notes.onset - first_tick) // FRAME_TICKS
    last = (notes.onset + notes.length - 1 - first_tick) // FRAME_TICKS
    where.append(first)
    ids.append(layout.begins + notes.event)
    spans = np.maximum(last - first + 1, 1)
    steps = np.arange(spans.sum()) - np.repeat(np.cumsum(spans) - spans, spans)
    where.append(np.repeat(first, spans) + steps)
    ids.append(1 + np.repeat(notes.event, spans))
    return _in_slots(np.concatenate(where), np.concatenate(ids), frames, slots)


def _in_slots(where: np.ndarray, ids: np.ndarray, frames: int, slots: int) -> np.ndarray:
    inside = (where >= 0) & (where < frames)
    where, ids = where[inside], ids[inside]
    order = np.argsort(where, kind="stable")
    where, ids = where[order], ids[order]
    counts = np.bincount(where, minlength=frames)
    slot = np.arange(len(where)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.zeros((frames, slots), np.int64)
    fits = slot < slots
    table[where[fits], slot[fits]] = ids[fits]
    return table


# ---- Holes to learn from ------------------------------------------------------------------------------------------------

# Shares of training windows: nothing is known, some parts are, all but a rectangle is, random rectangles are.
NOTHING, SOME_PARTS, BUT_A_SPAN = 1 / 3, 2 / 3, 5 / 6
TOP_PART_WEIGHT = 2.0  # the melody is given twice as often as another part
LONGEST_SPAN = 8  # bars


def drawn_holes(
    rng: np.random.Generator, starts: np.ndarray, classes: Sequence[PartClass]
) -> HoleGrid | None:
    """What a training window is told; None: nothing.

    Args:
        starts: ticks of the bar lines, the first 0.
        classes: of the piece, the top part first.
    """
    kind = rng.random()
    spans, parts = len(starts), len(classes)
    if kind < NOTHING or not parts:
        return None
    is_open = np.zeros((spans, parts), bool)
    if kind < SOME_PARTS and parts > 1:
        weights = np.ones(parts)
        weights[0] = TOP_PART_WEIGHT
        count = int(rng.integers(1, parts))
        known = rng.choice(parts, count, replace=False, p=weights / weights.sum())
        is_open[:] = True
        is_open[:, known] = False
    elif kind < BUT_A_SPAN:
        length = int(rng.integers(1, min(LONGEST_SPAN, spans) + 1))
        start = int(rng.integers(0, spans - length + 1))
        chosen = rng.permutation(parts)[: int(rng.integers(1, parts + 1))]
        is_open[start : start + length, chosen] = True
    else:
        is_open = rng.random((spans, parts)) < rng.uniform(0.1, 0.9)
    return HoleGrid(starts, tuple(classes), is_open)
