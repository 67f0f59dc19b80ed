"""The composer draws pieces that are pieces, within what was asked, the same alone and in any company."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures.random_notes import random_piece
from fixtures.tiny_composer import WINDOW, make_composer

from megajukebox.common.errors import UserError
from megajukebox.data.stream.note_windows import piece_events, window_from
from megajukebox.notes.clock import decode
from megajukebox.notes.events import END, NoteVocabulary, encode, on_steps
from megajukebox.sampling.composing.composer import (
    Composer,
    PieceRequest,
    expand_seeds,
)


@pytest.fixture(scope="module")
def composer(tmp_path_factory: pytest.TempPathFactory) -> Composer:
    pieces = [random_piece(np.random.default_rng(seed)) for seed in (1, 2, 5)]
    return make_composer(tmp_path_factory.mktemp("composer"), pieces)


def asked(composer: Composer, **fields) -> PieceRequest:
    metre = composer.vocabulary.metres[0]
    return PieceRequest(**({"metre": metre, "bars": 4, "max_events": 400} | fields))


def test_what_is_drawn_is_a_piece_as_long_as_asked(composer: Composer) -> None:
    pieces = composer.compose(expand_seeds(asked(composer), 4))
    for piece in pieces:
        numerator, denominator = piece.request.metre
        assert piece.notes.length == 4 * numerator * 96 // denominator
        assert piece.events[-1] == END and decode(piece.events, composer.vocabulary) == piece.notes
        assert on_steps(piece.notes).notes.tolist() == piece.notes.notes.tolist()
    assert len({piece.notes.fingerprint() for piece in pieces}) == 4


def test_one_seed_is_one_piece_in_any_company(composer: Composer) -> None:
    requests = [
        asked(composer, seed=1, artist="Ann"),
        asked(composer, seed=2, bars=9),
        asked(composer, seed=3, artist="Bo", temperature=0.7, top_p=0.9),
    ]
    together = composer.compose(requests)
    for request, piece in zip(requests, together):
        assert composer.compose([request])[0].events == piece.events
    assert len(together[1].events) > WINDOW  # it went on in another window
    other = replace(requests[0], artist="Bo")
    assert composer.compose([other])[0].events != together[0].events


def test_a_piece_goes_on_from_its_beginning(composer: Composer) -> None:
    beginning = composer.compose([asked(composer, bars=2, seed=5)])[0].notes
    request = asked(composer, beginning=beginning, bars=3, seed=6)
    (longer,) = composer.compose([request])
    kept = longer.notes.clipped(0, beginning.length)
    told = on_steps(beginning)
    assert kept.notes.tolist() == told.notes.tolist()
    assert longer.notes.length == beginning.length * 5 // 2


def test_other_instruments_than_those_asked_for_are_silent(composer: Composer) -> None:
    families = {part_class.family for part_class, _ in composer.vocabulary.notes}
    one = sorted(families)[0]
    (piece,) = composer.compose([asked(composer, instruments=(one,))])
    assert {part.family for part in piece.notes.parts} <= {one}


def test_a_piece_that_would_never_end_is_ended(composer: Composer) -> None:
    (piece,) = composer.compose([asked(composer, bars=0, max_events=120)])
    assert piece.events[-1] == END
    assert len(piece.events) < 120 + 400


def test_windows_of_drawing_are_those_of_training(composer: Composer) -> None:
    """What is drawn with caches, window after window, has the logits of the plain prior on training's windows."""
    (piece,) = composer.compose([asked(composer, bars=9, seed=2, max_events=9000)])
    told = piece_events(piece.notes, composer.vocabulary)
    assert told.events.tolist() == list(piece.events)
    start = int(told.starts[3])
    window = window_from(told, start, WINDOW)
    events, clock = window.events, window.clock
    kinds = [composer.vocabulary.events[event].kind for event in events[:2]]
    assert kinds == ["BAR", "TEMPO"]
    assert clock[0, 0] == 1 + told.clock[start, 0] - 1 and len(events) == len(clock)
    assert (clock[:, 3] > 0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"artist": "Nobody"}, "artist 'Nobody' is unknown.*ann"),
        ({"metre": (17, 16)}, "metre 17/16 is unknown"),
    ],
)
def test_what_it_never_learned_is_refused(composer: Composer, fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        composer.compose([asked(composer, **fields)])


def test_a_folder_without_a_composer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no composer"):
        Composer(tmp_path)


def test_a_beginning_it_cannot_say_is_refused(composer: Composer) -> None:
    other = random_piece(np.random.default_rng(77))
    vocabulary = NoteVocabulary.of([other])
    assert len(encode(other, vocabulary))
    with pytest.raises(UserError, match="learned nothing like it"):
        composer.compose([asked(composer, beginning=other)])
