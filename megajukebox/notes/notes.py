"""`Notes`: a piece of written or performed music, as notes on a clock.

The clock counts ticks, 24 to a quarter: sixteenths are 6 of them, triplets 8, thirty-seconds 3. All times are whole
ticks from the beginning. What a file holds that lies between two ticks is rounded, and counted by the reader.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from megajukebox.common.npz import read_npz
from megajukebox.notes.instruments import ScorePart, family_of, program_of

TICKS_PER_QUARTER = 24
MAX_PARTS = 16
MAX_NOTES = 200_000
PITCHES = 128  # of MIDI; 60 is middle C
DEFAULT_BPM = 120.0  # quarters a minute, where a file says nothing: MIDI's own default
MAX_BPM = 1000.0
MAX_HOURS = 24.0

NOTE = np.dtype(
    [
        ("onset", "<u4"),
        ("part", "u1"),
        ("pitch", "u1"),
        ("length", "<u4"),
        ("velocity", "u1"),  # 1 to 127; 0: not said
    ]
)
BAR = np.dtype([("onset", "<u4"), ("numerator", "u1"), ("denominator", "u1")])
TEMPO = np.dtype([("onset", "<u4"), ("bpm", "<f4")])
PHRASE_END, CHORD_SYMBOL, WORD = "phrase_end", "chord", "word"
MARKS = (PHRASE_END, CHORD_SYMBOL, WORD)


@dataclass(frozen=True, order=True)
class NoteMark:
    """Something written above or below the notes: the end of a phrase, a chord symbol, a sung word."""

    onset: int
    kind: str  # of MARKS
    text: str = ""
    part: int = 0


@dataclass(frozen=True, eq=False)
class Notes:
    """A piece. Two are equal if their fingerprints are.

    Raises:
        ValueError: a field says what no piece can be; the message names it.
    """

    notes: np.ndarray  # of NOTE, in order
    parts: tuple[ScorePart, ...]
    bars: np.ndarray  # of BAR; a pickup is a short first bar. Empty: performed without bars
    tempo: np.ndarray  # of TEMPO; the first at tick 0
    length: int  # ticks of the whole
    marks: tuple[NoteMark, ...] = ()
    key: str = ""  # "D minor"; empty: not said
    played: bool = field(default=False, kw_only=True)  # times are performed, not written

    def __post_init__(self) -> None:
        if len(self.parts) > MAX_PARTS:
            raise ValueError(f"has {len(self.parts)} parts, more than {MAX_PARTS}")
        if len(self.notes) > MAX_NOTES:
            raise ValueError(f"has {len(self.notes):,} notes, more than {MAX_NOTES:,}")
        for name, table in (("notes", self.notes), ("bars", self.bars), ("tempo", self.tempo)):
            if np.any(np.diff(table["onset"].astype(np.int64)) < 0):
                raise ValueError(f"{name} are not in the order of their onsets")
        if len(self.notes):
            if self.notes["part"].max() >= len(self.parts):
                raise ValueError(f"a note is of part {self.notes['part'].max()}, which is none")
            if not self.notes["length"].all():
                raise ValueError("a note has no length")
            if self.notes["pitch"].max() >= PITCHES or self.notes["velocity"].max() >= PITCHES:
                raise ValueError("a pitch or velocity is over 127")
            if self.end_of_notes > self.length:
                raise ValueError(f"ends at tick {self.length}, before its last note does")
        if not len(self.tempo) or self.tempo["onset"][0] != 0:
            raise ValueError("has no tempo at its beginning")
        if not np.all((self.tempo["bpm"] > 0) & (self.tempo["bpm"] <= MAX_BPM)):
            raise ValueError(f"has a tempo that is not within 0 to {MAX_BPM:.0f} beats a minute")
        if len(self.bars) and (self.bars["onset"][0] != 0 or not _are_metres(self.bars)):
            raise ValueError("has bars that begin late or have no metre")
        if any(mark.kind not in MARKS for mark in self.marks):
            raise ValueError(f"has a mark of a kind that is none of {', '.join(MARKS)}")

    @property
    def end_of_notes(self) -> int:
        """Tick at which the last note ends."""
        if not len(self.notes):
            return 0
        return int((self.notes["onset"].astype(np.int64) + self.notes["length"]).max())

    def fingerprint(self) -> str:
        """SHA-256 of what the piece is, whatever file it came from; names of parts count, for singers do."""
        digest = hashlib.sha256()
        for table in (self.notes, self.bars, self.tempo):
            digest.update(f"{len(table)};".encode() + table.tobytes())
        digest.update(repr((self.parts, self.length, self.marks, self.key, self.played)).encode())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Notes) and self.fingerprint() == other.fingerprint()

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    # ---- Time ----------------------------------------------------------------------------------------------------------

    @cached_property
    def _tempo_seconds(self) -> np.ndarray:
        """Seconds at which each tempo begins."""
        spans = np.diff(self.tempo["onset"].astype(np.float64))
        seconds = spans * 60.0 / (TICKS_PER_QUARTER * self.tempo["bpm"][:-1].astype(np.float64))
        return np.concatenate([[0.0], np.cumsum(seconds)])

    def seconds_at(self, ticks: np.ndarray | float) -> np.ndarray:
        """Seconds from the beginning, of ticks from the beginning: by the tempo map, never by a mean tempo."""
        ticks = np.asarray(ticks, np.float64)
        row = np.searchsorted(self.tempo["onset"], ticks, side="right") - 1
        row = np.maximum(row, 0)
        passed = ticks - self.tempo["onset"][row]
        return self._tempo_seconds[row] + passed * 60.0 / (
            TICKS_PER_QUARTER * self.tempo["bpm"][row].astype(np.float64)
        )

    def ticks_at(self, seconds: np.ndarray | float) -> np.ndarray:
        """The inverse of `seconds_at`; ticks are not rounded."""
        seconds = np.asarray(seconds, np.float64)
        row = np.maximum(np.searchsorted(self._tempo_seconds, seconds, side="right") - 1, 0)
        passed = seconds - self._tempo_seconds[row]
        quarters = passed * self.tempo["bpm"][row].astype(np.float64) / 60.0
        return self.tempo["onset"][row] + TICKS_PER_QUARTER * quarters

    @property
    def seconds(self) -> float:
        """Of the whole."""
        return float(self.seconds_at(self.length))

    # ---- Other pieces from this one ------------------------------------------------------------------------------------

    def transposed(self, semitones: int) -> "Notes":
        """All but the drums, higher by `semitones`; the key is then not said.

        Raises:
            ValueError: a note would leave MIDI's 0 to 127.
        """
        pitched = ~np.isin(self.notes["part"], self.drum_parts)
        pitches = self.notes["pitch"].astype(np.int64) + semitones * pitched
        if len(pitches) and (pitches.min() < 0 or pitches.max() >= PITCHES):
            raise ValueError(f"{semitones} semitones take a note out of 0 to 127")
        moved = self.notes.copy()
        moved["pitch"] = pitches
        return replace(self, notes=in_order(moved), key=self.key if semitones == 0 else "")

    @property
    def drum_parts(self) -> list[int]:
        return [number for number, part in enumerate(self.parts) if part.is_drums]

    def only(self, parts: Sequence[int]) -> "Notes":
        """Some parts alone, in the order given; times stay."""
        numbers = {old: new for new, old in enumerate(parts)}
        chosen = self.notes[np.isin(self.notes["part"], list(numbers))].copy()
        for note in chosen:
            note["part"] = numbers[int(note["part"])]
        marks = tuple(
            replace(mark, part=numbers[mark.part]) for mark in self.marks if mark.part in numbers
        )
        return replace(
            self,
            notes=in_order(chosen),
            parts=tuple(self.parts[number] for number in parts),
            marks=marks,
        )

    def clipped(self, start: int, end: int) -> "Notes":
        """Ticks `start` to `end` alone; notes that reach over an edge are cut there."""
        onsets = self.notes["onset"].astype(np.int64)
        ends = onsets + self.notes["length"]
        inside = (onsets < end) & (ends > start)
        chosen = self.notes[inside].copy()
        chosen["onset"] = np.maximum(onsets[inside], start) - start
        chosen["length"] = np.minimum(ends[inside], end) - np.maximum(onsets[inside], start)
        marks = tuple(
            replace(mark, onset=mark.onset - start)
            for mark in self.marks
            if start <= mark.onset < end
        )
        return replace(
            self,
            notes=in_order(chosen),
            bars=_from_tick(self.bars, start, end),
            tempo=_from_tick(self.tempo, start, end),
            length=end - start,
            marks=marks,
        )

    # ---- Files of shards -----------------------------------------------------------------------------------------------

    def to_npz(self) -> bytes:
        """As a member of a shard."""
        file = io.BytesIO()
        arrays: dict[str, np.ndarray] = {
            **{f"note_{name}": self.notes[name] for name in NOTE.names or ()},
            **{f"bar_{name}": self.bars[name] for name in BAR.names or ()},
            **{f"tempo_{name}": self.tempo[name] for name in TEMPO.names or ()},
            "part_name": np.array([part.name for part in self.parts], dtype=np.str_),
            "part_program": np.array([part.program for part in self.parts], dtype=np.uint8),
            "mark_onset": np.array([mark.onset for mark in self.marks], dtype=np.uint32),
            "mark_kind": np.array([mark.kind for mark in self.marks], dtype=np.str_),
            "mark_text": np.array([mark.text for mark in self.marks], dtype=np.str_),
            "mark_part": np.array([mark.part for mark in self.marks], dtype=np.uint8),
            "length": np.array(self.length, dtype=np.uint32),
            "key": np.array(self.key),
            "played": np.array(self.played),
        }
        np.savez_compressed(file, allow_pickle=False, **arrays)
        return file.getvalue()

    @classmethod
    def from_npz(cls, data: bytes) -> "Notes":
        """The piece of a member of a shard.

        Raises:
            ValueError: it is none.
        """
        arrays = read_npz(data)
        try:
            programs = [int(program) for program in arrays["part_program"]]
            parts = tuple(map(ScorePart, map(str, arrays["part_name"]), programs))
            marks = zip(
                arrays["mark_onset"].tolist(),
                map(str, arrays["mark_kind"]),
                map(str, arrays["mark_text"]),
                arrays["mark_part"].tolist(),
            )
            return cls(
                _table(arrays, NOTE, "note_"),
                parts,
                _table(arrays, BAR, "bar_"),
                _table(arrays, TEMPO, "tempo_"),
                int(arrays["length"]),
                tuple(NoteMark(*mark) for mark in marks),
                str(arrays["key"]),
                played=bool(arrays["played"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"holds no notes: {type(error).__name__}: {error}") from None

    def canonical(self) -> "Notes":
        """What events can say of the piece: programs by their family. Steps of tempo and loudness are `events`'."""
        parts = tuple(
            ScorePart(part.name, program_of(family_of(part.program))) for part in self.parts
        )
        return replace(self, parts=parts)


def in_order(notes: np.ndarray) -> np.ndarray:
    """Notes by onset, part and pitch; those of one part and pitch that overlap are cut where the next begins.

    Of two that begin together the longer stays.
    """
    by_pitch = notes[np.lexsort((notes["length"], notes["onset"], notes["pitch"], notes["part"]))]
    if len(by_pitch) > 1:
        same = (np.diff(by_pitch["part"].astype(np.int64)) == 0) & (
            np.diff(by_pitch["pitch"].astype(np.int64)) == 0
        )
        gaps = np.diff(by_pitch["onset"].astype(np.int64))
        lengths = by_pitch["length"].astype(np.int64)
        lengths[:-1] = np.where(same, np.minimum(lengths[:-1], gaps), lengths[:-1])
        by_pitch["length"] = lengths
        by_pitch = by_pitch[lengths > 0]
    return by_pitch[np.lexsort((by_pitch["pitch"], by_pitch["part"], by_pitch["onset"]))]


def ticks_of_bar(numerator: int, denominator: int) -> int:
    """Of a whole bar in this metre."""
    return numerator * 4 * TICKS_PER_QUARTER // denominator


def bars_of_metre(numerator: int, denominator: int, length: int, first: int = 0) -> np.ndarray:
    """Bars of one metre over `length` ticks, the first of them `first` ticks long if that is given (a pickup)."""
    whole = ticks_of_bar(numerator, denominator)
    onsets = [0, *range(first or whole, max(length, 1), whole)]
    bars = np.zeros(len(onsets), BAR)
    bars["onset"] = onsets
    bars["numerator"], bars["denominator"] = numerator, denominator
    return bars


def steady(bpm: float = DEFAULT_BPM) -> np.ndarray:
    """A tempo map of one tempo."""
    return np.array([(0, bpm)], TEMPO)


def _are_metres(bars: np.ndarray) -> bool:
    denominators = bars["denominator"].astype(np.int64)
    powers_of_two = (denominators > 0) & (denominators & (denominators - 1) == 0)
    rising = np.all(np.diff(bars["onset"].astype(np.int64)) > 0)
    return bool(np.all(bars["numerator"] > 0) & np.all(powers_of_two) & rising)


def _from_tick(table: np.ndarray, start: int, end: int) -> np.ndarray:
    """Rows of bars or tempi within `start` to `end`, the one that holds at `start` moved to it."""
    if not len(table):
        return table
    onsets = table["onset"].astype(np.int64)
    first = int(np.searchsorted(onsets, start, side="right")) - 1
    chosen = table[first : int(np.searchsorted(onsets, end, side="left"))].copy()
    chosen["onset"] = np.maximum(chosen["onset"].astype(np.int64) - start, 0)
    return chosen


def _table(arrays: dict[str, np.ndarray], dtype: np.dtype, prefix: str) -> np.ndarray:
    names = dtype.names or ()
    columns = [arrays[prefix + name] for name in names]
    if len({column.shape for column in columns}) != 1 or columns[0].ndim != 1:
        raise ValueError(f"has columns of different lengths: {', '.join(names)}")
    table = np.zeros(len(columns[0]), dtype)
    for name, column in zip(names, columns):
        table[name] = column
    return table
