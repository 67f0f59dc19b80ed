"""The best of several pieces, by what textbooks of harmony forbid; and figures by which nothing was chosen."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from megajukebox.notes.counterpoint import bars_that_return, counterpoint, voice_grid
from megajukebox.notes.notes import Notes

if TYPE_CHECKING:
    from megajukebox.sampling.composing.composer import ComposedPiece

# What each costs; figures of Bach's chorales are in docs/notes.md. Dissonances up to his cost nothing: fewer are dull.
FAULTS = {"parallel_fifths_per_100_chords": 1.0, "parallel_octaves_per_100_chords": 1.0}
CROSSED_WEIGHT = 0.25  # a percent of crossed sixteenths, beside one parallel in 100 chords
BACH_SHARP_PERCENT, BACH_TRIAD_PERCENT = 9.0, 90.0
HARMONY_WEIGHT = 0.25
UNCHOSEN = (
    "leap_percent",
    "sixteenths_a_note",
    "bars_that_return_percent",
)  # nothing is chosen by these


def figures_of(notes: Notes) -> dict[str, float]:
    """Figures of counterpoint of a piece, by name; none where its parts are no voices."""
    if len(notes.parts) < 2 or not len(notes.notes):
        return {}
    order = sorted(range(len(notes.parts)), key=lambda part: -mean_pitch(notes, part))
    try:
        grid = voice_grid(notes, order)
    except ValueError:  # a part that sounds chords
        return {}
    returning = 100.0 * bars_that_return(grid)
    return {**counterpoint(grid).figures(), "bars_that_return_percent": returning}


def mean_pitch(notes: Notes, part: int) -> float:
    pitches = notes.notes["pitch"][notes.notes["part"] == part]
    return float(pitches.mean()) if len(pitches) else 0.0


def cost_of(figures: dict[str, float]) -> float:
    """How far a piece is from the rules; what could not be counted costs nothing."""
    values = {name: 0.0 if np.isnan(value) else value for name, value in figures.items()}
    cost = sum(weight * values.get(name, 0.0) for name, weight in FAULTS.items())
    cost += CROSSED_WEIGHT * values.get("crossed_percent", 0.0)
    sharp = values.get("sharp_dissonance_percent", 0.0) - BACH_SHARP_PERCENT
    triads = BACH_TRIAD_PERCENT - values.get("triad_percent", BACH_TRIAD_PERCENT)
    return cost + HARMONY_WEIGHT * (max(sharp, 0.0) + max(triads, 0.0))


def best_first(pieces: "Sequence[ComposedPiece]") -> "list[ComposedPiece]":
    """By their cost; of equal ones that of the smaller seed first."""
    return sorted(pieces, key=lambda piece: (cost_of(piece.figures), piece.request.seed))
