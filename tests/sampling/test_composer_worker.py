"""The process behind the page Draw: what it answers, and the page's server with the composer itself behind it."""

import io
from pathlib import Path

import numpy as np
import pytest
from fixtures.tiny_composer import chorale, make_composer

from megajukebox.commands import compose
from megajukebox.common.errors import UserError
from megajukebox.data.drawn_notes import drawn_of
from megajukebox.explorer.server.draw_api import DrawServices
from megajukebox.notes.notes import Notes
from megajukebox.notes.readers import read_notes
from megajukebox.records.drawn_piece import DrawnVoices, FillAnswer, FillOrder
from megajukebox.sampling.composing.composer_worker import ComposerServer, serve


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "composer"
    folder.mkdir()
    make_composer(folder, [chorale(seed, 8) for seed in range(12)], known=True)
    return folder.parent


def voice(piece: DrawnVoices, number: int) -> list[tuple[int, ...]]:
    return sorted(note for note in piece.notes if note[3] == number)


def drawn(piece: Notes, voices: str, bars: int = 2) -> DrawnVoices:
    """Some voices of a chorale."""
    whole = drawn_of(piece, bars)
    kept = [note for note in whole.notes if "SATB"[note[3]] in voices]
    return whole.model_copy(update={"notes": tuple(kept), "key": "D minor", "bpm": 77.0})


@pytest.mark.parametrize("known", ["S", "B", "ST", "SATB"])
def test_locked_voices_stay_and_the_others_are_written(run: Path, known: str) -> None:
    piece = drawn(chorale(3), known)
    wanted = "".join(letter for letter in "SATB" if letter not in known) or "T"
    order = FillOrder(piece=piece, voices=wanted, seed=4, variations=3, keep=2)
    answer = ComposerServer(run).answer(order)
    assert answer.state == "done", answer.reason
    assert len(answer.answers) == 2
    for one in answer.answers:
        assert (one.piece.bars, one.piece.key, one.piece.bpm) == (2, "D minor", 77.0)
        for number, letter in enumerate("SATB"):
            if letter not in wanted:
                assert voice(one.piece, number) == voice(piece, number)


def test_a_rectangle_alone_is_rewritten_and_one_seed_is_one_answer(run: Path) -> None:
    piece = drawn(chorale(5), "SATB", bars=3)
    order = FillOrder(piece=piece, voices="AT", first_bar=2, last_bar=2, variations=2, keep=1)
    server = ComposerServer(run)
    (answer,) = server.answer(order).answers
    assert server.answer(order).answers == (answer,)
    for number in (0, 3):
        assert voice(answer.piece, number) == voice(piece, number)
    before = [note for note in piece.notes if note[0] + note[1] <= 96]
    assert set(before) <= set(answer.piece.notes)


def test_with_nothing_drawn_all_voices_are_written(run: Path) -> None:
    order = FillOrder(piece=DrawnVoices(bars=1), voices="SATB", variations=1, keep=1)
    answer = ComposerServer(run).answer(order)
    assert answer.state == "done", answer.reason
    assert answer.answers[0].piece.bars == 1


def test_what_the_composer_cannot_write_is_said(run: Path) -> None:
    server = ComposerServer(run)
    metre = DrawnVoices(notes=((0, 24, 70, 0),), metre=(5, 8))
    assert "learned nothing like it" in server.answer(FillOrder(piece=metre)).reason
    late = FillOrder(piece=drawn(chorale(1), "S"), first_bar=5)
    assert "behind the last one, 2" in server.answer(late).reason


def test_it_answers_line_by_line(run: Path) -> None:
    order = FillOrder(piece=drawn(chorale(2), "S"), variations=1, keep=1)
    out = io.StringIO()
    serve(ComposerServer(run), [order.model_dump_json(), order.model_dump_json()], out)
    first, second = map(FillAnswer.model_validate_json, out.getvalue().splitlines())
    assert first.answers == second.answers and first.memory > 0


@pytest.mark.slow
def test_the_server_asks_the_process_itself(run: Path, tmp_path: Path) -> None:
    services = DrawServices(run, tmp_path / "work")
    try:
        services.warm_up()
        order = FillOrder(piece=drawn(chorale(2), "S"), variations=2, keep=2)
        assert len(services.fill(order).answers) == 2
    finally:
        services.close()


def test_compose_writes_every_format_that_was_asked_for(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'pdf' is none of"):
        compose.main(run, tmp_path, bars=1, formats="mid,pdf")
    compose.main(run, tmp_path, bars=1, max_events=60, formats="mid, musicxml,abc")
    names = ["piece-0000.abc", "piece-0000.json", "piece-0000.mid", "piece-0000.musicxml"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    written = [read_notes(tmp_path / name) for name in names if not name.endswith(".json")]
    pitches = [sorted(piece.notes["pitch"].tolist()) for piece in written]
    assert pitches[0] == pitches[1] == pitches[2] and np.any(written[0].notes["pitch"])
