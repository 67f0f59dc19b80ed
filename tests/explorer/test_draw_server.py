"""What the page Draw asks of its server: pieces checked, files out and in, a composer that may be slow, dead or absent."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fixtures.asgi import ask_app
from starlette.applications import Starlette

from megajukebox.common.errors import UserError
from megajukebox.data.drawn_notes import drawn_of, notes_of
from megajukebox.explorer.server import draw_api
from megajukebox.explorer.server.draw_api import DrawServices, draw_routes, read_in_process
from megajukebox.explorer.server.request_limits import RequestRefused
from megajukebox.notes.readers import pieces_of
from megajukebox.notes.writers import NOTE_FORMATS, written
from megajukebox.records.drawn_piece import DrawnVoices, FillOrder

TUNE = {
    "notes": [[0, 24, 67, 0], [24, 24, 69, 0], [48, 24, 71, 0], [0, 72, 43, 3]],
    "bars": 1,
    "metre": [3, 4],
    "bpm": 96,
    "key": "G major",
}
# Stands in for a composer's process; what it does with an order is the rest of the program.
STAND_IN = "import json, sys, time\nfor line in sys.stdin:\n    order = json.loads(line)\n    "
ECHO = (
    "answer = {'state': 'done', 'answers': [{'piece': order['piece'], 'seed': order['seed'] + n,"
    " 'figures': {}} for n in range(order['keep'])]}\n    print(json.dumps(answer), flush=True)"
)


def composer(folder: Path, program: str) -> DrawServices:
    return DrawServices(
        folder, folder / "work", command=lambda _: [sys.executable, "-c", STAND_IN + program]
    )


class Page:
    """Asks the routes of Draw alone."""

    def __init__(self, services: DrawServices) -> None:
        self.app = Starlette(routes=draw_routes(services))

    def whole(self, path: str, body: Any = None) -> tuple[int, dict[str, str], bytes]:
        return ask_app(self.app, f"/api/draw{path}", body)

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        status, _, content = self.whole(path, body)
        return status, json.loads(content)


def test_a_drawn_piece_is_notes_and_back() -> None:
    piece = DrawnVoices.model_validate(TUNE)
    notes = notes_of(piece)
    assert [part.name for part in notes.parts] == ["Soprano", "Alto", "Tenor", "Bass"]
    assert notes.bars.tolist() == [(0, 3, 4)] and notes.length == 72
    again = drawn_of(notes)
    assert again == piece.model_copy(update={"notes": tuple(sorted(piece.notes))})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"notes": [[60, 24, 60, 0]]}, "outside the bars"),
        ({"notes": [[0, 0, 60, 0]]}, "outside the bars"),
        ({"notes": [[0, 24, 128, 0]]}, "no such pitch"),
        ({"notes": [[0, 24, 60, 4]]}, "no such pitch or voice"),
        ({"notes": [[0, 24, 60]]}, "notes.0.3"),
        ({"notes": [[0, 10**30, 60, 0]]}, "outside the bars"),
        ({"notes": [[0, 24, 60, 0]] * 2001}, "notes"),
        ({"bars": 9}, "bars"),
        ({"metre": [4, 3]}, "metre"),
        ({"metre": [0, 4]}, "metre"),
        ({"bpm": 0}, "bpm"),
        ({"key": "<b>"}, "key"),
        ({"out": "/etc/passwd"}, "out"),
    ],
)
def test_what_is_no_drawn_piece_is_refused_by_its_field(changes: dict, field: str) -> None:
    status, answer = Page(DrawServices()).ask("/files/mid", TUNE | changes)
    assert status == 400 and field in answer["error"]


@pytest.mark.parametrize("form", NOTE_FORMATS)
def test_files_hold_what_was_drawn(form: str) -> None:
    status, headers, content = Page(DrawServices()).whole(f"/files/{form}", TUNE)
    assert status == 200
    assert headers["content-disposition"] == f'attachment; filename="drawn.{form}"'
    (read,) = pieces_of(content, f".{form}")
    assert read.notes is not None
    assert drawn_of(read.notes) == DrawnVoices.model_validate(
        TUNE | {"notes": sorted(TUNE["notes"])}
    )


def test_nothing_drawn_and_unknown_formats_are_no_files() -> None:
    page = Page(DrawServices())
    assert "nothing is drawn" in page.ask("/files/mid", {})[1]["error"]
    assert page.ask("/files/exe", TUNE)[0] == 400


def test_a_composer_is_asked_and_kept_loaded(tmp_path: Path) -> None:
    services = composer(tmp_path, ECHO)
    page = Page(services)
    try:
        assert page.ask("")[1]["composer"] is True
        answers = page.ask("/fill", {"piece": TUNE, "seed": 5})[1]["answers"]
        assert [one["seed"] for one in answers] == [5, 6, 7]
        assert answers[0]["piece"]["key"] == "G major"
        assert services.process is not None and services.process.process is not None
        first = services.process.process.pid
        page.ask("/fill", {"piece": TUNE, "keep": 1})
        assert services.process.process.pid == first
        status, wrong = page.ask("/fill", {"piece": TUNE, "voices": "ABBA."})
        assert status == 400 and "voices" in wrong["error"]
    finally:
        services.close()
    assert not services.process.alive
    with pytest.raises(UserError, match="ending"):
        services.fill(FillOrder(piece=DrawnVoices()))


def test_without_a_composer_the_way_to_one_is_said() -> None:
    page = Page(DrawServices())
    assert page.ask("")[1]["composer"] is False
    status, answer = page.ask("/fill", {"piece": TUNE})
    assert status == 400 and "explore serve --run" in answer["error"]


def test_a_composer_that_dies_or_takes_too_long_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "if order['seed'] == 1: sys.exit('no memory')\n    if order['seed'] == 2: time.sleep(999)\n    "
    services = composer(tmp_path, program + ECHO)
    piece = DrawnVoices.model_validate(TUNE)
    try:
        with pytest.raises(UserError, match="no memory"):
            services.fill(FillOrder(piece=piece, seed=1))
        assert services.fill(FillOrder(piece=piece, seed=3)).state == "done"
        monkeypatch.setattr(draw_api, "FILL_SECONDS", 0.2)
        with pytest.raises(UserError, match=r"took over 0\.2 seconds"):
            services.fill(FillOrder(piece=piece, seed=2))
        monkeypatch.setattr(draw_api, "FILL_SECONDS", 60.0)
        assert services.fill(FillOrder(piece=piece, seed=4)).answers[0].seed == 4
    finally:
        services.close()


def test_a_melody_too_many_is_told_to_come_back(tmp_path: Path) -> None:
    services = composer(tmp_path, ECHO)
    for _ in range(draw_api.MAX_WAITING):
        assert services.waiting.acquire(blocking=False)
    with pytest.raises(RequestRefused) as refusal:
        services.fill(FillOrder(piece=DrawnVoices()))
    assert refusal.value.status == 429


def test_an_idle_composer_is_unloaded(tmp_path: Path) -> None:
    services = composer(tmp_path, ECHO)
    services.idle_minutes = 0.001
    assert services.process is not None
    services.fill(FillOrder(piece=DrawnVoices()))
    deadline = time.monotonic() + 60
    while services.process.alive and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not services.process.alive
    services.close()


def test_a_file_is_opened_in_another_process_and_cut_to_the_page() -> None:
    piece = DrawnVoices.model_validate(TUNE)
    long_notes = [[bar * 72, 72, 60 + bar, 0] for bar in range(8)]
    eight = DrawnVoices(notes=long_notes, bars=8, metre=(3, 4))
    answer = read_in_process(written(notes_of(piece), "mid"), ".mid")
    assert answer["piece"]["bars"] == 1
    assert [note[2] for note in answer["piece"]["notes"]] == [67, 43, 69, 71]
    assert answer["told"] == []
    assert read_in_process(written(notes_of(eight), "mid"), ".mid")["piece"]["bars"] == 8
    with pytest.raises(UserError, match="cannot be used: starts with"):
        read_in_process(b"no MIDI", ".mid")


def test_a_pickup_becomes_the_end_of_a_bar_and_what_is_too_long_is_cut() -> None:
    text = b"X:1\nM:3/4\nL:1/4\nK:D\nA|" + b"dfa|" * 12 + b"d3|]\n"
    (read,) = pieces_of(text, ".abc")
    assert read.notes is not None
    drawn = drawn_of(read.notes)
    assert drawn.bars == 8 and drawn.notes[0] == (48, 24, 69, 0) and drawn.notes[1][0] == 72


def test_uploads_are_bounded_in_kind_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(DrawServices())
    assert "notes are read from" in page.ask("/open/exe", b"MZ")[1]["error"]
    monkeypatch.setattr(draw_api, "MAX_NOTE_FILE_BYTES", 10)
    assert page.ask("/open/mid", b"MThd" * 5)[0] == 413
    monkeypatch.setattr(draw_api, "OPENED_PER_MINUTE", 1)
    page = Page(DrawServices())
    monkeypatch.setattr(draw_api, "read_in_process", lambda *_: {"piece": TUNE, "told": []})
    assert page.ask("/open/mid", b"MThd")[1]["piece"] == TUNE
    assert page.ask("/open/mid", b"MThd")[0] == 429


def test_a_hostile_file_stops_its_reader_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_api, "READ_SECONDS", 1)
    bomb = b"<?xml version='1.0'?>" + b"<a>" * 200_000
    for data, ending in ((bomb, ".musicxml"), (b"X:1\nK:C\n" + b"(((((" * 20_000, ".abc")):
        with pytest.raises(UserError, match="cannot be used"):
            read_in_process(data, ending)


def test_the_record_is_the_same_json_on_both_sides() -> None:
    order = FillOrder(piece=DrawnVoices.model_validate(TUNE), voices="ATB", seed=2**52)
    assert FillOrder.model_validate_json(json.dumps(order.model_dump(mode="json"))) == order
