"""Where in the music each event stands: `Clock` event by event, `places` for a whole sequence, `decode` back to notes."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from megajukebox.notes.events import (
    BARS_TOLD,
    CHORD_TOLD,
    KINDS,
    PLACES,
    NoteEvent,
    NoteVocabulary,
    PartClass,
    bpm_of_step,
    class_name,
    class_rank,
    velocity_of_step,
)
from megajukebox.notes.instruments import ScorePart, program_of
from megajukebox.notes.notes import (
    BAR,
    DEFAULT_BPM,
    NOTE,
    TEMPO,
    Notes,
    in_order,
    ticks_of_bar,
)

VOICES_TOLD = 8  # parts of which a model is told what they sing; of more the highest
LONGEST_WAIT = 96  # ticks until the next note ends, as a model is told
NOTHING_SOUNDS = LONGEST_WAIT + 1


def decode(events: Iterable[int], vocabulary: NoteVocabulary) -> Notes:
    """The piece that events say; those after END are not looked at.

    Raises:
        ValueError: they are no piece: a NOTE without a LENGTH, or a number that is no event.
    """
    clock = Clock(vocabulary)
    for number in events:
        if clock.ended:
            break
        clock.push(int(number))
    return clock.piece()


class Clock:
    """Where in the music the next event stands, and what has been said so far; grows by one event at a time.

    `places` computes the same for a whole sequence at once.
    """

    def __init__(self, vocabulary: NoteVocabulary) -> None:
        self.vocabulary = vocabulary
        self.tick = 0
        self.bar_onset = 0
        self.bar_ticks = 0  # of the whole bar in its metre; 0 before the first one
        self.bars: list[tuple[int, int, int]] = []
        self.tempo: list[tuple[int, int]] = []  # tick and step
        self.notes: list[list[Any]] = []  # onset, class, pitch, length, loudness
        self.chord = 0  # notes of this tick
        self.run = 0  # ticks of the SHIFTs, or of the LENGTHs, in a row
        self.last = ""  # the kind of the last event
        self.loudness: dict[PartClass, int] = {}
        self.sounding: dict[tuple[PartClass, int], int] = {}  # until which tick
        self.latest: dict[PartClass, list[Any]] = {}  # the last note of each part
        self.ended = False

    @property
    def place(self) -> int:
        """In the bar, as a model is told."""
        return min(self.tick - self.bar_onset, PLACES - 1)

    @property
    def bar(self) -> int:
        """Number of the bar, as a model is told."""
        return max(len(self.bars) - 1, 0) % BARS_TOLD

    @property
    def notes_in_chord(self) -> int:
        """As a model is told."""
        return min(self.chord, CHORD_TOLD - 1)

    @property
    def end(self) -> int:
        """Tick at which the last note ends."""
        return max(self.sounding.values(), default=0)

    def voices(self) -> list[int]:
        """What each part sings or sang last, as `VoiceStates.ids`, and before them the wait: [1 + VOICES_TOLD]."""
        ids = []
        waits = [LONGEST_WAIT]
        size = self.vocabulary.size
        for part_class in sorted(self.latest, key=class_rank):
            onset, _, pitch, length, _ = self.latest[part_class]
            left = onset + length - self.tick
            number = self.vocabulary.numbers[NoteEvent("NOTE", pitch, 0, part_class)]
            sounds = left > 0 or not length
            ids.append(1 + number + (0 if sounds else size))
            if left > 0:
                waits.append(left)
        wait = min(waits) if len(waits) > 1 else NOTHING_SOUNDS
        ids = ids[:VOICES_TOLD]
        return [wait, *ids, *[0] * (VOICES_TOLD - len(ids))]

    def push(self, number: int) -> None:
        """Take one event in.

        Raises:
            ValueError: it makes no sense here.
        """
        events = self.vocabulary.events
        if not 0 <= number < len(events):
            raise ValueError(f"{number} is no event of {len(events)}")
        event = events[number]
        if self.last in ("NOTE", "LOUD") and event.kind not in ("LENGTH", "LOUD"):
            raise ValueError(f"a note is followed by {event.kind} and not by its LENGTH")
        getattr(self, f"_{event.kind.lower()}")(event)
        self.last = event.kind

    def _pad(self, event: NoteEvent) -> None:
        raise ValueError("PAD is no music")

    def _end(self, event: NoteEvent) -> None:
        self.ended = True

    def _bar(self, event: NoteEvent) -> None:
        self.bars.append((self.tick, event.value, event.other))
        self.bar_onset = self.tick
        self.bar_ticks = max(1, ticks_of_bar(event.value, event.other))

    def _tempo(self, event: NoteEvent) -> None:
        self.tempo.append((self.tick, event.value))

    def _shift(self, event: NoteEvent) -> None:
        self.run = event.value + (self.run if self.last == "SHIFT" else 0)
        self.tick += event.value
        self.chord = 0

    def _note(self, event: NoteEvent) -> None:
        assert event.part_class
        loudness = self.loudness.get(event.part_class, -1)
        self.notes.append([self.tick, event.part_class, event.value, 0, loudness])
        self.latest[event.part_class] = self.notes[-1]
        self.chord += 1

    def _loud(self, event: NoteEvent) -> None:
        if self.last != "NOTE":
            raise ValueError("LOUD stands without a note before it")
        self.loudness[self.notes[-1][1]] = event.value
        self.notes[-1][4] = event.value

    def _length(self, event: NoteEvent) -> None:
        if self.last not in ("NOTE", "LOUD", "LENGTH"):
            raise ValueError("LENGTH stands without a note before it")
        self.run = event.value + (self.run if self.last == "LENGTH" else 0)
        note = self.notes[-1]
        note[3] = self.run
        self.sounding[note[1], note[2]] = self.tick + self.run

    def piece(self) -> Notes:
        """What has been said so far.

        Raises:
            ValueError: the last note has no length, or there are too many parts.
        """
        if self.last in ("NOTE", "LOUD"):
            raise ValueError("the last note has no LENGTH")
        classes = sorted({note[1] for note in self.notes}, key=class_rank)
        numbers = {part_class: number for number, part_class in enumerate(classes)}
        rows = []
        for onset, part_class, pitch, length, loudness in self.notes:
            velocity = velocity_of_step(loudness) if loudness >= 0 else 0
            rows.append((onset, numbers[part_class], pitch, length, velocity))
        tempo = [(tick, bpm_of_step(step)) for tick, step in self.tempo]
        return Notes(
            in_order(np.array(rows, NOTE)),
            tuple(ScorePart(class_name(c), program_of(c.family)) for c in classes),
            np.array(self.bars, BAR),
            np.array(tempo or [(0, DEFAULT_BPM)], TEMPO),
            max(self.tick, self.end),
        )


class Places(NamedTuple):
    """Of every event of a sequence, where it stands: what `Clock` says before it. int64 [events] each."""

    tick: np.ndarray
    place: np.ndarray
    bar: np.ndarray
    chord: np.ndarray


def places(events: np.ndarray, vocabulary: NoteVocabulary) -> Places:
    """`Clock` before every event, at once.

    Args:
        events: numbers, [events].
    """
    table = np.array([(KINDS.index(e.kind), e.value) for e in vocabulary.events], np.int64)
    kinds, values = table[events].T
    moves = np.where(kinds == KINDS.index("SHIFT"), values, 0)
    tick = np.concatenate([[0], np.cumsum(moves)[:-1]]) if len(events) else np.zeros(0, np.int64)
    is_bar = kinds == KINDS.index("BAR")
    onset = np.maximum.accumulate(np.where(is_bar, tick, 0)) if len(events) else tick
    onset = _before(onset, 0)
    bars = _before(np.cumsum(is_bar), 0)
    is_note = kinds == KINDS.index("NOTE")
    notes = _before(np.cumsum(is_note), 0)
    # Notes before the last SHIFT are of other chords.
    earlier = (
        np.maximum.accumulate(np.where(moves > 0, np.cumsum(is_note), 0)) if len(events) else notes
    )
    chord = notes - _before(earlier, 0)
    return Places(
        tick,
        np.minimum(tick - onset, PLACES - 1),
        np.maximum(bars - 1, 0) % BARS_TOLD,
        np.minimum(chord, CHORD_TOLD - 1),
    )


class VoiceStates(NamedTuple):
    """What a composer knows of each part before every event, as a musician who reads the score hears it in his mind."""

    wait: (
        np.ndarray
    )  # int64 [events]: ticks until the next note ends, 1 to LONGEST_WAIT, or NOTHING_SOUNDS
    # int64 [events, VOICES_TOLD]: 0, or 1 + the last NOTE of a part; + the size of the vocabulary where it has ended.
    ids: np.ndarray


def voice_states(events: np.ndarray, tick: np.ndarray, vocabulary: NoteVocabulary) -> VoiceStates:
    """`Clock.voices` before every event, at once.

    Args:
        events: numbers, [events].
        tick: of each, [events].
    """
    table = np.array([(KINDS.index(e.kind), e.value) for e in vocabulary.events], np.int64)
    kinds, values = table[events].T
    (places_of_notes,) = np.nonzero(kinds == KINDS.index("NOTE"))
    # Ticks of LENGTH said before each event, and before the event behind the last.
    lengths = np.where(kinds == KINDS.index("LENGTH"), values, 0)
    said = np.concatenate([[0], np.cumsum(lengths)])
    following = np.append(places_of_notes[1:], len(events))
    of_notes = [vocabulary.events[event].part_class for event in events[places_of_notes].tolist()]
    classes = sorted({one for one in of_notes if one}, key=class_rank)
    numbers = {part_class: number for number, part_class in enumerate(classes)}
    columns = np.array([numbers[one] for one in of_notes if one], np.int64)
    row = np.arange(len(events))
    ids = np.zeros((len(events), max(len(classes), VOICES_TOLD)), np.int64)
    wait = np.full(len(events), NOTHING_SOUNDS)
    for column in range(len(classes)):
        (mine,) = np.nonzero(columns == column)
        last = np.searchsorted(places_of_notes[mine], row) - 1
        sang = last >= 0
        note = mine[np.maximum(last, 0)]
        place = places_of_notes[note]
        length = said[np.minimum(following[note], row)] - said[place]
        left = tick[place] + length - tick
        sounds = (left > 0) | (length == 0)
        number = 1 + events[place] + np.where(sounds, 0, vocabulary.size)
        ids[:, column] = np.where(sang, number, 0)
        wait = np.where(sang & (left > 0), np.minimum(wait, np.minimum(left, LONGEST_WAIT)), wait)
    # Parts that sang first, in their order.
    order = np.argsort(ids == 0, axis=1, kind="stable")[:, :VOICES_TOLD]
    return VoiceStates(wait, np.take_along_axis(ids, order, axis=1))


def _before(values: np.ndarray, first: int) -> np.ndarray:
    """Each value one place later."""
    return np.concatenate([[first], values[:-1]]) if len(values) else values
