"""Figures of counterpoint on planted cases: each is counted where it was planted, and nowhere else."""

import numpy as np
import pytest

from megajukebox.notes.counterpoint import (
    CopyFinder,
    Counterpoint,
    bars_that_return,
    counterpoint,
    voice_grid,
)
from megajukebox.notes.instruments import ScorePart
from megajukebox.notes.notes import NOTE, Notes, bars_of_metre, in_order, steady

C_MAJOR, D_MINOR = (72, 67, 64, 48), (74, 65, 62, 50)


def quarters(*chords: tuple[int, ...]) -> np.ndarray:
    return np.repeat(np.array(chords, np.uint8), 4, axis=0)


@pytest.mark.parametrize(
    ("chords", "planted"),
    [
        ([(72, 67, 64, 48), (74, 65, 62, 55)], {}),
        ([(67, 64, 60, 48), (69, 65, 62, 50)], {"parallel_octaves": 1, "parallel_fifths": 2}),
        ([(67, 60), (69, 62)], {"parallel_fifths": 1}),
        ([(67, 60), (67, 60)], {}),  # nothing moves
        ([(67, 60), (62, 55)], {"parallel_fifths": 1}),
        ([(67, 60), (62, 67)], {"crossed_steps": 4}),  # a fifth by contrary motion
        ([(72, 60), (74, 62)], {"parallel_octaves": 1}),
        ([(60, 60), (62, 62)], {"parallel_octaves": 1}),
        ([(60, 72), (60, 72)], {"crossed_steps": 8}),
        ([(60, 59), (60, 60)], {"sharp_dissonances": 1}),
        ([(71, 48), (72, 48)], {"sharp_dissonances": 1}),
        ([(60, 50), (72, 50)], {"leaps": 1}),
        ([(60, 50), (69, 50)], {}),  # a sixth is no leap
    ],
)
def test_what_is_planted_is_counted(chords: list, planted: dict[str, int]) -> None:
    counts = counterpoint(quarters(*chords))
    for name in (
        "parallel_fifths",
        "parallel_octaves",
        "crossed_steps",
        "sharp_dissonances",
        "leaps",
    ):
        assert getattr(counts, name) == planted.get(name, 0), name


def test_rests_part_what_is_around_them() -> None:
    counts = counterpoint(quarters((67, 60), (0, 0), (69, 62)))
    assert counts.parallel_fifths == 0 and counts.moves == 0
    assert counts.steps == 8 and counts.notes == 4 and counts.sounding == 16


def test_triads_on_beats() -> None:
    counts = counterpoint(quarters(C_MAJOR, D_MINOR, (72, 66, 61, 48), (72, 60, 60, 48)))
    assert (counts.beats, counts.triads) == (4, 3)
    rates = (counts + counts).figures()
    assert rates["triad_percent"] == 75 and rates["sixteenths_a_note"] > 4
    assert np.isnan(Counterpoint().figures()["triad_percent"])


def test_a_stretch_that_returns_is_found_transposed_and_not_in_itself() -> None:
    rng = np.random.default_rng(0)
    once = rng.integers(50, 70, (32, 2)).astype(np.uint8)
    other = rng.integers(50, 70, (32, 2)).astype(np.uint8)
    assert bars_that_return(np.concatenate([once, other])) == 0
    again = bars_that_return(np.concatenate([once, other, once + 5]))
    stretches = (96 - 16) // 4 + 1
    assert again == pytest.approx(2 * ((32 - 16) // 4 + 1) / stretches)
    assert bars_that_return(np.full((64, 2), 60)) == 1
    assert np.isnan(bars_that_return(once[:20]))


def test_the_longest_copy_is_found_in_another_key() -> None:
    rng = np.random.default_rng(1)
    training = [rng.integers(50, 70, (60, 4)).astype(np.uint8) for _ in range(3)]
    finder = CopyFinder(training)
    own = rng.integers(50, 70, (60, 4)).astype(np.uint8)
    assert finder.longest(own) == 0
    own[10:41] = training[1][20:51] - 3
    assert finder.longest(own) == 30  # moves between 31 steps
    assert finder.longest(training[2]) == 59


def test_the_grid_holds_what_sounds_in_each_sixteenth() -> None:
    rows = [(0, 0, 72, 24, 0), (24, 0, 74, 6, 0), (36, 0, 76, 12, 0), (0, 1, 48, 48, 0)]
    piece = Notes(
        in_order(np.array(rows, NOTE)),
        (ScorePart("high", 52), ScorePart("low", 52)),
        bars_of_metre(2, 4, 48),
        steady(),
        48,
    )
    assert voice_grid(piece).T.tolist() == [[72] * 4 + [74, 0, 76, 76], [48] * 8]
    assert voice_grid(piece, voices=[1]).tolist() == [[48]] * 8
    doubled = np.concatenate([piece.notes, np.array([(6, 1, 50, 6, 0)], NOTE)])
    with pytest.raises(ValueError, match="two notes"):
        voice_grid(Notes(in_order(doubled), piece.parts, piece.bars, piece.tempo, 48))
