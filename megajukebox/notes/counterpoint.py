"""Figures of counterpoint: what textbooks teach and papers count, of pieces in a few voices; and of repetition.

A piece is looked at on a grid of sixteenths: for every voice the pitch that sounds, 0 for a rest. Definitions are those of
the four-part style (Piston, Harmony); counts of Bach's chorales stand in docs/evaluation.md as the measure.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np

from megajukebox.notes.notes import TICKS_PER_QUARTER, Notes

STEP = TICKS_PER_QUARTER // 4  # ticks of a sixteenth
STEPS_A_BEAT = 4
STEPS_A_BAR = 16  # of 4/4; repetition looks for stretches of this length, whatever the metre
REST = 0
OCTAVE, FIFTH = 12, 7
LARGEST_STEP = 9  # semitones: leaps over a sixth are counted
# Semitones above the root: triads and seventh chords of the style, whole or in part.
CHORDS = (
    (0, 4, 7),
    (0, 3, 7),
    (0, 3, 6),
    (0, 4, 7, 10),
    (0, 3, 7, 10),
    (0, 3, 6, 10),
    (0, 4, 7, 11),
)
SHORTEST_COPY = 12  # sixteenths: shorter runs are shared by everybody


def voice_grid(notes: Notes, voices: Sequence[int] | None = None) -> np.ndarray:
    """uint8 [steps, voices]: the pitch that sounds in each sixteenth, REST where none does.

    Args:
        voices: numbers of parts, the highest voice first; all of them by default.
    Raises:
        ValueError: a voice sounds two notes at once.
    """
    chosen = list(range(len(notes.parts)) if voices is None else voices)
    grid = np.zeros((-(-notes.length // STEP), len(chosen)), np.uint8)
    for column, part in enumerate(chosen):
        until = 0
        for onset, _, pitch, length, _ in notes.notes[notes.notes["part"] == part].tolist():
            if onset < until:
                raise ValueError(f"part {part} sounds two notes at tick {onset}: it is no voice")
            until = onset + length
            first, last = -(-onset // STEP), -(-until // STEP)
            grid[first : max(last, first + 1), column] = pitch
    return grid


@dataclass
class Counterpoint:
    """Counts of one or several pieces; `figures` makes rates of them."""

    steps: int = 0  # in which all voices sound
    chords: int = 0  # changes of what sounds
    parallel_fifths: int = 0
    parallel_octaves: int = 0
    crossed_steps: int = 0
    verticals: int = 0  # chords in which all voices sound
    sharp_dissonances: int = 0  # verticals with a minor second or a major seventh
    beats: int = 0
    triads: int = 0  # beats whose voices are a triad or seventh chord, or part of one
    moves: int = 0  # from one note of a voice to another
    leaps: int = 0  # over a sixth
    sounding: int = 0  # voice-steps
    notes: int = 0

    def __add__(self, other: "Counterpoint") -> "Counterpoint":
        totals = asdict(self)
        for name, count in asdict(other).items():
            totals[name] += count
        return Counterpoint(**totals)

    def figures(self) -> dict[str, float]:
        """Rates by name; NaN where there is nothing to count."""
        rates = {
            "parallel_fifths_per_100_chords": (self.parallel_fifths, self.chords),
            "parallel_octaves_per_100_chords": (self.parallel_octaves, self.chords),
            "crossed_percent": (self.crossed_steps, self.steps),
            "sharp_dissonance_percent": (self.sharp_dissonances, self.verticals),
            "triad_percent": (self.triads, self.beats),
            "leap_percent": (self.leaps, self.moves),
        }
        figures = {}
        for name, (count, total) in rates.items():
            figures[name] = 100.0 * count / total if total else float("nan")
        figures["sixteenths_a_note"] = self.sounding / self.notes if self.notes else float("nan")
        return figures


def counterpoint(grid: np.ndarray) -> Counterpoint:
    """Counts of a grid [steps, voices], the highest voice first."""
    grid = grid.astype(np.int64)
    counts = Counterpoint()
    full = (grid != REST).all(1)
    counts.steps = int(full.sum())
    counts.crossed_steps = int(((grid[:, :-1] < grid[:, 1:]).any(1) & full).sum())
    for voice in grid.T:
        _count_moves(voice, counts)
    changed = np.concatenate([[True], (np.diff(grid, axis=0) != 0).any(1)])
    chords = grid[changed]
    counts.chords = max(len(chords) - 1, 0)
    for upper, lower in combinations(range(grid.shape[1]), 2):
        fifths, octaves = _parallels(chords[:, upper], chords[:, lower])
        counts.parallel_fifths += fifths
        counts.parallel_octaves += octaves
    for chord in chords[(chords != REST).all(1)]:
        counts.verticals += 1
        counts.sharp_dissonances += _is_sharp(chord)
    for step in np.flatnonzero(full[::STEPS_A_BEAT]) * STEPS_A_BEAT:
        counts.beats += 1
        counts.triads += _is_chord(grid[step])
    return counts


def _count_moves(voice: np.ndarray, counts: Counterpoint) -> None:
    sounds = voice != REST
    counts.sounding += int(sounds.sum())
    begins = sounds & np.concatenate([[True], np.diff(voice) != 0])
    counts.notes += int(begins.sum())
    changes = np.flatnonzero(np.diff(voice) != 0)
    for step in changes:
        if sounds[step] and sounds[step + 1]:
            counts.moves += 1
            counts.leaps += abs(int(voice[step + 1] - voice[step])) > LARGEST_STEP


def _parallels(upper: np.ndarray, lower: np.ndarray) -> tuple[int, int]:
    """(fifths, octaves) that move to the same interval in the same direction; unisons are octaves."""
    interval = (upper - lower) % OCTAVE
    up, down = np.sign(np.diff(upper)), np.sign(np.diff(lower))
    sounds = (upper != REST) & (lower != REST)
    together = (up == down) & (up != 0) & sounds[:-1] & sounds[1:]
    same = together & (interval[:-1] == interval[1:])
    fifths = same & (interval[1:] == FIFTH)
    octaves = same & (interval[1:] == 0)
    return int(fifths.sum()), int(octaves.sum())


def _is_sharp(chord: np.ndarray) -> bool:
    classes = np.unique(chord % OCTAVE)
    return any((b - a) % OCTAVE in (1, OCTAVE - 1) for a, b in combinations(classes, 2))


def _is_chord(chord: np.ndarray) -> bool:
    classes = {int(pitch) % OCTAVE for pitch in chord}
    for root in range(OCTAVE):
        for shape in CHORDS:
            if classes <= {(root + interval) % OCTAVE for interval in shape}:
                return True
    return False


def bars_that_return(grid: np.ndarray, span: int = STEPS_A_BAR) -> float:
    """Share of stretches of `span` sixteenths, one from every beat, that sound again elsewhere in the piece.

    Transposed ones count. Two stretches that overlap are not two. NaN for a piece shorter than two of them.
    """
    starts = range(0, len(grid) - span + 1, STEPS_A_BEAT)
    places: dict[bytes, list[int]] = {}
    keys = []
    for start in starts:
        stretch = grid[start : start + span].astype(np.int64)
        sounds = stretch != REST
        lowest = stretch[sounds].min() if sounds.any() else 0
        key = np.where(sounds, stretch - lowest, -99).tobytes()
        places.setdefault(key, []).append(start)
        keys.append((start, key))
    if not keys or len(grid) < 2 * span:
        return float("nan")
    again = [any(abs(other - start) >= span for other in places[key]) for start, key in keys]
    return float(np.mean(again))


class CopyFinder:
    """The longest run of a piece that some training piece has too, transposed or not."""

    def __init__(self, training: Iterable[np.ndarray]) -> None:
        """`training`: grids [steps, voices], all with the same number of voices."""
        self.training = [_moves(grid) for grid in training]
        self.index: dict[tuple[bytes, ...], list[tuple[int, int]]] = {}
        for number, moves in enumerate(self.training):
            for start in range(len(moves) - SHORTEST_COPY + 1):
                run = tuple(moves[start : start + SHORTEST_COPY])
                self.index.setdefault(run, []).append((number, start))

    def longest(self, grid: np.ndarray) -> int:
        """Sixteenths; 0 if no run reaches SHORTEST_COPY."""
        moves = _moves(grid)
        longest = 0
        for start in range(len(moves) - SHORTEST_COPY + 1):
            run = tuple(moves[start : start + SHORTEST_COPY])
            for number, place in self.index.get(run, ()):
                longest = max(longest, self._run(moves, start, self.training[number], place))
        return longest

    @staticmethod
    def _run(ours: list[bytes], start: int, theirs: list[bytes], place: int) -> int:
        length = SHORTEST_COPY
        while (
            start + length < len(ours)
            and place + length < len(theirs)
            and ours[start + length] == theirs[place + length]
        ):
            length += 1
        return length


def _moves(grid: np.ndarray) -> list[bytes]:
    """Of every step how each voice moved, and the intervals below the highest: the same in every key."""
    grid = grid.astype(np.int64)
    moves = np.diff(grid, axis=0)
    intervals = grid[1:, :1] - grid[1:, 1:]
    return [row.tobytes() for row in np.concatenate([moves, intervals], axis=1)]
