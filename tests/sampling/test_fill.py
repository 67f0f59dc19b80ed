"""What is known stays as it is, what is open is written and nothing else, whatever the weights say."""

from dataclasses import replace

import numpy as np
import pytest
from fixtures.random_notes import random_piece
from fixtures.tiny_composer import BAR_TICKS, CHOIR, chorale, make_composer

from megajukebox.common.errors import UserError
from megajukebox.notes.fill import FillRegion, fill_plan
from megajukebox.notes.instruments import ScorePart
from megajukebox.notes.notes import NOTE, Notes, bars_of_metre, steady
from megajukebox.sampling.composing.choose import UNCHOSEN, best_first, cost_of, figures_of
from megajukebox.sampling.composing.composer import Composer


@pytest.fixture(scope="module")
def composer(tmp_path_factory: pytest.TempPathFactory) -> Composer:
    pieces = [chorale(seed, 8) for seed in range(12)]
    return make_composer(tmp_path_factory.mktemp("choir"), pieces, known=True)


def rows_of(piece: Notes, part: int, first: int = 0, last: int = 1 << 30) -> list[tuple]:
    """(onset, pitch, length) of the notes of a part that begin in bars `first` to `last`, from 0 on."""
    found = []
    for onset, one, pitch, length, _ in piece.notes.tolist():
        if one == part and first <= onset // BAR_TICKS <= last:
            found.append((onset, pitch, length))
    return found


def test_a_melody_is_harmonised_and_stays_the_melody(composer: Composer) -> None:
    melody = chorale(3, parts=1)
    pieces = composer.fill(melody, parts="ATB", seed=5, variations=3)
    for piece in pieces:
        assert rows_of(piece.notes, 0) == rows_of(melody, 0)
        assert piece.notes.length == melody.length
        assert piece.notes.bars.tolist() == melody.bars.tolist()
        assert all(part.family == "voice" for part in piece.notes.parts)
    assert len({piece.notes.fingerprint() for piece in pieces}) == 3


def test_a_melody_of_another_instrument_keeps_it(composer: Composer) -> None:
    melody = replace(chorale(3, parts=1), parts=(ScorePart("Track 1", 73),))
    (piece,) = composer.fill(melody, parts="ATB")
    assert piece.notes.parts[0] == ScorePart("Track 1", 73)


def test_a_rectangle_is_rewritten_and_the_rest_stays(composer: Composer) -> None:
    given = chorale(4)
    (piece,) = composer.fill(given, parts="AT", bars="2-3", seed=1)
    for part in (0, 3):
        assert rows_of(piece.notes, part) == rows_of(given, part)
    for part in (1, 2):
        assert rows_of(piece.notes, part, 0, 0) == rows_of(given, part, 0, 0)
        assert rows_of(piece.notes, part, 3) == rows_of(given, part, 3)
        new = rows_of(piece.notes, part, 1, 2)
        assert new != rows_of(given, part, 1, 2)
        # A note that begins in the hole ends in it.
        assert all(onset + length <= 3 * BAR_TICKS for onset, _, length in new)


def test_without_holes_for_the_others_a_part_alone_is_written(composer: Composer) -> None:
    given = chorale(6).only([0, 3])
    (piece,) = composer.fill(given, parts="AT", bars="2")
    assert len(piece.notes.parts) <= 4
    voices = {part.name: number for number, part in enumerate(piece.notes.parts)}
    for name in ("voice 2", "voice 3"):
        if name in voices:
            begins = [row[0] // BAR_TICKS for row in rows_of(piece.notes, voices[name])]
            assert set(begins) <= {1}  # silent outside of the hole


def test_a_piece_goes_on_from_any_bar(composer: Composer) -> None:
    given = chorale(7)
    (piece,) = composer.fill(given, bars="3-", seed=2)
    assert piece.notes.length == given.length
    for part in range(4):
        kept = [row for row in rows_of(given, part, 0, 1) if sum(row[::2]) <= 2 * BAR_TICKS]
        assert set(kept) <= set(rows_of(piece.notes, part, 0, 1))
    (longer,) = composer.fill(given, bars="5-6", seed=2)
    assert longer.notes.length == 6 * BAR_TICKS


def test_one_seed_is_one_piece_whatever_is_filled_beside_it(composer: Composer) -> None:
    given = chorale(8, bars=2)
    together = composer.fill(given, parts="TB", seed=3, variations=2)
    for piece in together:
        (alone,) = composer.fill(given, parts="TB", seed=piece.request.seed)
        assert alone.events == piece.events


def test_rewriting_changes_the_region_alone(composer: Composer) -> None:
    given = chorale(9, bars=2)
    (plain,) = composer.fill(given, parts="ATB", seed=1)
    (again,) = composer.fill(given, parts="ATB", seed=1, rewrites=2)
    assert rows_of(again.notes, 0) == rows_of(given, 0)
    assert again.events != plain.events
    assert again.events == composer.fill(given, parts="ATB", seed=1, rewrites=2)[0].events


def test_known_loudness_comes_back(tmp_path) -> None:
    pieces = [random_piece(np.random.default_rng(seed)) for seed in (13, 7, 10)]
    loud = make_composer(tmp_path / "loud", pieces, known=True)
    assert loud.vocabulary.loudness
    given = pieces[0]
    plan = fill_plan(given, FillRegion(bars="2"))
    (piece,) = loud.fill(given, bars="2", seed=4)
    hole = plan.grid.starts[1], plan.grid.starts[2]
    kept = [row for row in plan.piece.notes.tolist() if not hole[0] <= row[0] < hole[1]]
    exact = [row for row in given.notes.tolist() if not hole[0] <= row[0] < hole[1]]
    got = [row for row in piece.notes.notes.tolist() if not hole[0] <= row[0] < hole[1]]
    assert len(kept) > 20 and [row[0] for row in kept] == [row[0] for row in got]
    # Onset, pitch and length as they were; loudness exact and not on the steps of events.
    assert sorted(row[2:] for row in exact) == sorted(row[2:] for row in got)
    assert piece.notes.tempo.tolist() == given.tempo.tolist()


def test_the_best_comes_first_by_figures_that_are_told(composer: Composer) -> None:
    given = chorale(10)
    pieces = composer.fill(given, parts="ATB", variations=5)
    kept = composer.fill(given, parts="ATB", variations=5, keep=2)
    assert [p.request.seed for p in kept] == [p.request.seed for p in best_first(pieces)[:2]]
    costs = [cost_of(piece.figures) for piece in best_first(pieces)]
    assert costs == sorted(costs)
    assert set(UNCHOSEN) <= set(pieces[0].figures)
    changed = {name: 99.0 for name in UNCHOSEN}
    assert cost_of(pieces[0].figures | changed) == cost_of(pieces[0].figures)


def test_parallels_cost_more_than_none() -> None:
    moves = [(0, 72, 65), (24, 74, 67), (48, 76, 69)]  # fifths in a row
    rows = [(tick, part, pair[part], 24, 0) for tick, *pair in moves for part in (0, 1)]
    parallel = Notes(np.array(rows, NOTE), CHOIR[:2], bars_of_metre(4, 4, 96), steady(), 96)
    assert figures_of(parallel)["parallel_fifths_per_100_chords"] > 60
    contrary = parallel.notes.copy()
    contrary["pitch"][parallel.notes["part"] == 1] = [67, 65, 64]
    assert cost_of(figures_of(replace(parallel, notes=contrary))) < cost_of(figures_of(parallel))


@pytest.mark.parametrize(
    ("parts", "bars", "message"),
    [
        ("ATX", "", "part 'ATX' is no part"),
        ("AT", "", "the piece has 1 parts; to write AT it must have 2"),
        ("ATB", "7-9", "not within this piece's 1 to 4"),
        ("ATB", "two", "bars 'two' are none"),
        ("kazoo 1", "", "part 'kazoo 1' is no part"),
        ("tuba 1", "", "part 'tuba 1' is unknown to|is no part"),
        ("violin 1", "", "part 'violin 1' is unknown to .* it knows voice 1, voice 2"),
    ],
)
def test_what_cannot_be_filled_is_refused(
    composer: Composer, parts: str, bars: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        composer.fill(chorale(1, parts=1), parts=parts, bars=bars)


def test_regions_are_read_from_words() -> None:
    assert FillRegion.parse("parts=ATB") == FillRegion("ATB")
    assert FillRegion.parse("bars=1,3-4,parts=T") == FillRegion("T", "1,3-4")
    for text in ("ATB", "parts=A,parts=T", "notes=3"):
        with pytest.raises(UserError, match="is not understood"):
            FillRegion.parse(text)
