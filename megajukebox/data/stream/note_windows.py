"""Which windows of events a set of note shards has, and one of them: the samples of the composer."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from megajukebox.common.errors import BadSampleError, UserError
from megajukebox.conditioning.schema import Condition, SongConditioning, WindowPosition, read_song
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.code_dataset import ShardSong
from megajukebox.data.stream.sample_order import lru_get
from megajukebox.data.stream.song_dataset import Part, believable, of_part, report, split
from megajukebox.notes.clock import (
    VOICES_TOLD,
    Clock,
    Places,
    VoiceStates,
    places,
    voice_states,
)
from megajukebox.notes.events import (
    PAD,
    NoteEvent,
    NoteVocabulary,
    PartClass,
    class_rank,
    encode,
)
from megajukebox.notes.holes import (
    FRAME_TICKS,
    NoteTable,
    ScoreLayout,
    drawn_holes,
    note_table,
    score_frames,
)
from megajukebox.notes.instruments import DRUMS_FAMILY
from megajukebox.notes.notes import Notes

PIECES_KEPT = 256  # that each process keeps as events
CLOCK_COLUMNS = 5 + VOICES_TOLD
PROGRESS, VOICES = 3, slice(5, None)  # columns of the clock
PROGRESS_STEPS = 32  # of the share of the piece that is over
LENGTH_DROPOUT = 0.3  # share of training windows that do not know how long their piece is
SPAN_TICKS = 96  # what stands for a bar in a piece without bars


def check_notes(shards: ShardSet) -> None:
    """Raise UserError unless `shards` is a set of note shards."""
    if shards.index["kind"] != "notes" or "notes" not in shards.index:
        raise UserError(
            f"{shards.folder} holds {shards.index['kind']}, the composer reads notes; run prepare-notes"
            " (again, for sets of an older version)"
        )


class PieceEvents(NamedTuple):
    """A piece as events, and where each of them stands."""

    events: np.ndarray  # int64 [events]
    clock: np.ndarray  # int64 [events, CLOCK_COLUMNS]: ids of ClockConditioner
    tempo: np.ndarray  # int64 [events]: the TEMPO event that holds before each
    starts: np.ndarray  # where a window may begin: bar lines, or any note of a piece without bars
    ticks: np.ndarray  # int64 [events]: absolute


class PieceNotes(NamedTuple):
    """The notes of a piece by parts and bars: what a window may be told of."""

    notes: NoteTable
    classes: tuple[PartClass, ...]  # of the piece, the top part first
    columns: np.ndarray  # of each note, its part's number in `classes`
    bars: np.ndarray  # ticks at which they begin, the first 0


def clock_of(where: Places, voices: VoiceStates, length: int) -> np.ndarray:
    """Ids [events, CLOCK_COLUMNS] for ClockConditioner, of a piece of `length` ticks (0: not known); 0 stands for what is
    not known."""
    progress = np.zeros_like(where.tick)
    if length:
        progress = np.minimum(where.tick * PROGRESS_STEPS // length, PROGRESS_STEPS - 1) + 1
    columns = [where.place + 1, where.bar + 1, where.chord + 1, progress, voices.wait]
    return np.concatenate([np.stack(columns, axis=-1), voices.ids], axis=-1)


def clock_ids(clock: Clock, length: int) -> tuple[int, ...]:
    """The same of one event, which comes next in `clock`."""
    progress = min(clock.tick * PROGRESS_STEPS // length, PROGRESS_STEPS - 1) + 1 if length else 0
    place, bar, chord = clock.place + 1, clock.bar + 1, clock.notes_in_chord + 1
    return place, bar, chord, progress, *clock.voices()


def piece_events(piece: Notes, vocabulary: NoteVocabulary) -> PieceEvents:
    """Raises ValueError where the vocabulary lacks an event."""
    events = encode(piece, vocabulary).astype(np.int64)
    kinds = np.array([event.kind for event in vocabulary.events])[events]
    is_tempo = kinds == "TEMPO"
    last = np.maximum.accumulate(np.where(is_tempo, np.arange(len(events)), 0))
    starts = np.flatnonzero(kinds == "BAR")
    if not len(starts):
        starts = np.concatenate([[0], np.flatnonzero(kinds == "NOTE")])
    where = places(events, vocabulary)
    return PieceEvents(
        events,
        clock_of(where, voice_states(events, where.tick, vocabulary), piece.length),
        np.where(is_tempo[last], events[last], PAD),
        starts,
        where.tick,
    )


def piece_notes(piece: PieceEvents, vocabulary: NoteVocabulary) -> PieceNotes:
    """The notes of a piece that was encoded."""
    notes = note_table(piece.events, piece.ticks, vocabulary)
    of_notes = [vocabulary.events[event].part_class for event in notes.event.tolist()]
    classes = sorted({one for one in of_notes if one}, key=class_rank)
    numbers = {part_class: number for number, part_class in enumerate(classes)}
    columns = np.array([numbers[one] for one in of_notes if one], np.int64)
    is_bar = np.array([event.kind == "BAR" for event in vocabulary.events])[piece.events]
    bars = piece.ticks[is_bar] if is_bar.any() else np.arange(0, piece.ticks[-1] + 1, SPAN_TICKS)
    return PieceNotes(notes, tuple(classes), columns, bars)


class EventWindow(NamedTuple):
    """Events of a window, and where each stands."""

    events: np.ndarray  # int64 [events]
    clock: np.ndarray  # int64 [events, CLOCK_COLUMNS]
    rows: (
        np.ndarray
    )  # of the piece's events; that of the event behind it for a tempo that was put in
    given: np.ndarray  # bool [events]: put in, and nothing to predict


def window_from(piece: PieceEvents, start: int, size: int) -> EventWindow:
    """The events from `start` on, at most `size`; within a piece the tempo that holds follows the first event."""
    rows = np.arange(start, min(start + size, len(piece.events)))
    events = piece.events[rows]
    given = np.zeros(len(rows), bool)
    holds = piece.tempo[start]
    if start and holds != PAD and len(events) > 1 and events[1] != holds:
        rows = np.insert(rows, 1, rows[1])[:size]
        events = np.insert(events, 1, holds)[:size]
        given = np.insert(given, 1, True)[:size]
    return EventWindow(events, piece.clock[rows], rows, given)


def transposition_table(vocabulary: NoteVocabulary, semitones: Sequence[int]) -> np.ndarray:
    """int64 [semitones, vocabulary]: each event moved by so many semitones; -1 where the vocabulary lacks it."""
    table = np.tile(np.arange(vocabulary.size), (len(semitones), 1))
    for row, step in enumerate(semitones):
        for number, event in enumerate(vocabulary.events):
            pitched = event.part_class and event.part_class.family != DRUMS_FAMILY
            if event.kind == "NOTE" and pitched:
                moved = NoteEvent("NOTE", event.value + step, 0, event.part_class)
                table[row, number] = vocabulary.numbers.get(moved, -1)
    return table


class NoteWindows:
    """Windows of `window` events, each from a bar line on; with `transpose` in another key each time.

    What a window lacks at its end is PAD, which is not predicted. A window within a piece begins with its bar line and
    the tempo that holds.
    """

    def __init__(
        self,
        shards: ShardSet,
        vocabulary: NoteVocabulary,
        window: int,
        held_out: float,
        conditions: tuple[Condition, ...],
        transpose: tuple[int, int] = (0, 0),
        slots: int = 0,
    ) -> None:
        """
        Args:
            transpose: lowest and highest semitones.
            slots: of a frame of the known score; 0: for a composer that reads none.
        """
        self.shards = shards
        self.vocabulary = vocabulary
        self.window = window
        self.held_out = held_out
        self.conditions = conditions
        self.semitones = range(transpose[0], transpose[1] + 1)
        self.moved = transposition_table(vocabulary, self.semitones)
        self.slots = slots
        self.layout = ScoreLayout(vocabulary)
        self.is_tail = np.array([event.kind in ("LENGTH", "LOUD") for event in vocabulary.events])
        self.shard_of_song = np.asarray(shards.songs["shard"])
        told = shards.index["notes"]
        frames = believable(shards.songs["frames"])
        events_a_frame = told["events"] / max(1, int(frames.sum()))
        self._clips = np.maximum(1, np.round(frames * events_a_frame / window)).astype(np.int64)
        self._held_out = split(shards.songs["key"], held_out)
        self._pieces: dict[int, tuple[PieceEvents, PieceNotes]] = {}
        self._conditioning: dict[int, SongConditioning] = {}

    def clips(self, part: Part) -> np.ndarray:
        """Number of windows of each piece, [pieces] int64; 0 for those of the other part."""
        return of_part(self._clips, self._held_out, part)

    def report(self) -> dict[str, int]:
        return report(self._clips, self._held_out)

    def facts(self) -> dict[str, object]:
        """What fixes the samples beside the seed."""
        return {
            "index": self.shards.fingerprint,
            "window": self.window,
            "held_out": self.held_out,
            "transpose": [self.semitones.start, self.semitones.stop - 1],
        }

    def read(self, song: int, clip: int, rng: np.random.Generator | None) -> dict[str, Any]:
        """One window: codes [window] int64, predicted [window] bool, clock [window, CLOCK_COLUMNS] int64, score [window, 1 + slots]
        int64 of a composer that reads known notes, and its conditions.

        With `rng` some notes are known, and not predicted then; without it none are, nor how long the piece is.

        Raises:
            BadSampleError: the piece cannot be read.
        """
        piece, notes = lru_get(self._pieces, song, self._read_piece, size=PIECES_KEPT)
        start = self._start(piece, clip, int(self._clips[song]), rng)
        window = window_from(piece, start, self.window)
        moved = self._transposition(piece.events, rng)
        clock = window.clock.copy()
        clock[:, VOICES] = np.concatenate([[0], 1 + moved, 1 + len(moved) + moved])[
            clock[:, VOICES]
        ]
        if rng is None or rng.random() < LENGTH_DROPOUT:
            clock[:, PROGRESS] = 0
        holes = drawn_holes(rng, notes.bars, notes.classes) if rng is not None else None
        missing = self.window - len(window.events)
        predicted = ~window.given
        sample: dict[str, Any] = {
            "codes": np.pad(moved[window.events], (0, missing), constant_values=PAD),
            "clock": np.pad(clock, ((0, missing), (0, 0))),
        }
        if self.slots:
            sample["score"] = np.zeros((self.window, 1 + self.slots), np.int64)
        if self.slots and holes is not None:
            first_tick = int(piece.ticks[start])
            frame = (piece.ticks[window.rows] - first_tick) // FRAME_TICKS + 1
            known = holes.known(notes.notes.onset, notes.columns)
            told = NoteTable(*(column[known] for column in notes.notes))
            told = told._replace(event=moved[told.event])
            sample["score"][: len(frame), 0] = np.where(frame <= self.window, frame, 0)
            sample["score"][:, 1:] = score_frames(
                self.layout, holes, told, first_tick, self.window, self.slots
            )
            predicted &= ~self._said(piece, told)[window.rows]
        sample["predicted"] = np.pad(predicted, (0, missing))
        conditioning = lru_get(
            self._conditioning,
            song,
            lambda song: read_song(self.conditions, ShardSong(self.shards, song)),
            size=PIECES_KEPT,
        )
        frames = int(self.shards.songs["frames"][song])
        position = WindowPosition(frames, 0, frames, self.shards.index["sample_rate"])
        return sample | conditioning.window(position, rng)

    def _said(self, piece: PieceEvents, notes: NoteTable) -> np.ndarray:
        """Which events of a piece say `notes`, bool [events]: each NOTE with the LOUD and the LENGTH behind it."""
        heads = np.where(self.is_tail[piece.events], 0, np.arange(len(piece.events)))
        said = np.zeros(len(piece.events), bool)
        said[notes.place] = True
        return said[np.maximum.accumulate(heads)]

    def _read_piece(self, song: int) -> tuple[PieceEvents, PieceNotes]:
        try:
            piece = Notes.from_npz(self.shards.read_member(song, "notes"))
            events = piece_events(piece, self.vocabulary)
            return events, piece_notes(events, self.vocabulary)
        except ValueError as error:
            raise BadSampleError("undecodable", f"{self.shards.key(song)} {error}") from None

    def _start(
        self, piece: PieceEvents, clip: int, clips: int, rng: np.random.Generator | None
    ) -> int:
        """The bar line from which window `clip` of `clips` is read; with `rng` moved by up to half a window.

        The first window begins where the piece does, the last one holds its end.
        """
        last = max(0, len(piece.events) - self.window)
        wanted = last * clip / max(1, clips - 1)
        if rng is not None:
            wanted += (rng.random() - 0.5) * max(self.window, last / clips)
        place = np.searchsorted(piece.starts, np.clip(wanted, 0, last))
        return int(piece.starts[min(place, len(piece.starts) - 1)])

    def _transposition(self, events: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """Another key, as a table over all events, if the vocabulary has all notes of `events` there."""
        unmoved = np.arange(self.vocabulary.size)
        if rng is None or len(self.semitones) < 2:
            return unmoved
        moved = self.moved[rng.integers(len(self.semitones))]
        return moved if moved[events].min() >= 0 else unmoved
