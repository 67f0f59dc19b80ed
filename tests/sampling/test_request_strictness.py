"""Requests are read in one way or refused by name: numbers without end, keys twice, switches for numbers; and what no
level of the runs is told is a note on the song.
"""

import json
import math
from pathlib import Path

import pytest
import yaml
from fixtures.fuzzing import limited_time
from fixtures.tiny_jukebox import write_runs
from hypothesis import given, settings
from hypothesis import strategies as st

from megajukebox.sampling.batch_job import SamplingRun
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.songs.requests import parse_requests, read_requests

GOOD = {"id": "good", "seconds": 0.5}
HUGE = 10**300


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("jukebox") / "runs")


# ---- Numbers (case 21) ------------------------------------------------------------------------------------------------

ENDLESS = [
    ({"song_seconds": math.inf}, "song_seconds: must be a finite number, at most 86400 (got inf)"),
    ({"song_seconds": 1e300}, "song_seconds: must be at most 86400 (got 1e+300)"),
    (
        {"prompt": "a.wav", "keep_seconds": math.inf},
        "keep_seconds: must be a finite number, at most 86400 (got inf)",
    ),
    ({"infill": "a.wav", "replace": [[0.2, math.inf]]}, "replace: must hold ranges [start, end]"),
    ({"infill": "a.wav", "replace": [[math.nan, 1]]}, "replace: must hold ranges [start, end]"),
    ({"seconds": math.nan}, "seconds: must be a finite number, "),
    ({"year": HUGE}, "year: must be at most 9999"),
    ({"year": True}, "year: must be a number, not true (got True)"),
    ({"seconds": True}, "seconds: must be a number, not true (got True)"),
    ({"seed": False}, "seed: must be a number, not false (got False)"),
    ({"temperature": True}, "temperature: top is True; it must be above 0"),
    ({"temperature": {"top": math.inf}}, "temperature: top is inf; it must be above 0"),
    ({"top_k": HUGE}, "top_k: top is 1"),
]


@pytest.mark.parametrize(("mistake", "line"), ENDLESS, ids=lambda value: str(value)[:40])
def test_a_number_out_of_range_costs_its_own_request(tmp_path: Path, mistake: dict, line: str):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump([GOOD, {"id": "bad", **mistake}]))
    valid, refused = read_requests(tmp_path / "a.yaml")
    assert [request.id for request in valid] == ["good"]
    assert len(refused) == 1 and refused[0].startswith("request bad: ") and line in refused[0]


def test_json_that_overflows_to_infinity_costs_its_own_request(tmp_path: Path):
    (tmp_path / "a.json").write_text('[{"id": "good"}, {"id": "bad", "song_seconds": 1e400}]')
    valid, refused = read_requests(tmp_path / "a.json")
    assert [request.id for request in valid] == ["good"] and "finite number" in refused[0]


# ---- Keys twice (case 16), byte order marks (case 27) ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.yaml", "- {id: good}\n- id: bad\n  artist: A\n  artist: B\n", "(line 4)"),
        ("a.yaml", "- {id: good}\n- {id: bad, top_k: {top: 1, top: 2}}\n", "'top_k.top'"),
        ("a.json", '[{"id": "good"}, {"id": "bad", "artist": "A", "artist": "B"}]', "'artist'"),
        ("a.JSON", '[{"id": "good"}, {"id": "bad", "a": [{"b": 1, "b": 2}]}]', "'a.0.b'"),
    ],
)
def test_a_setting_given_twice_costs_its_own_request(tmp_path: Path, name, text, line):
    (tmp_path / name).write_text(text)
    valid, refused = read_requests(tmp_path / name)
    assert [request.id for request in valid] == ["good"]
    assert len(refused) == 1 and refused[0].startswith("request bad: ")
    assert "is given twice" in refused[0] and line in refused[0]


@pytest.mark.parametrize("name", ["bom.json", "bom.yaml"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_mistake(tmp_path: Path, name: str, encoding: str):
    (tmp_path / name).write_bytes('[{"id": "one", "artist": "Björk"}]'.encode(encoding))
    [request], refused = read_requests(tmp_path / name)
    assert request.artist == "Björk" and not refused


# ---- Settings that nobody hears (case 25) ------------------------------------------------------------------------------


def notes_of(runs: Path, **request: object) -> list[str]:
    [asked], refused = parse_requests([{"id": "a", "lyrics": "la", **request}])
    assert not refused
    return Jukebox(runs).notes(asked)


UNHEARD = [
    (
        {"language": "Klingon"},
        "language 'Klingon' is not heard: no level of these runs is told a language",
    ),
    ({"moods": ["sad"]}, "moods 'sad' is not heard: no level of these runs is told moods"),
    ({"keywords": "x"}, "keywords 'x' is not heard: no level of these runs is told keywords"),
    ({"year": 1700}, "year '1700' is not heard: no level of these runs is told a year"),
    ({"aligned": {"chords": []}}, "aligned.chords is not heard: no level of these runs is told it"),
]


@pytest.mark.parametrize(("setting", "note"), UNHEARD, ids=lambda value: str(value)[:20])
def test_a_setting_that_no_level_is_told_is_a_note(runs: Path, setting: dict, note: str):
    assert note in notes_of(runs, **setting)


def test_lyrics_that_are_not_sung_as_written_are_a_note(runs: Path):
    told = notes_of(runs, lyrics="[00:01.00]la\n[0,500]lu")
    assert "lyrics line 2: [0,500] is no time; write [mm:ss.xx]" in told


def test_a_setting_that_some_level_hears_is_no_note(runs: Path):
    heard = notes_of(runs, artist="ilune", genres=["waltz"], song_seconds=20.0, temperature=0.9)
    assert not [note for note in heard if "is not heard" in note or "is not used" in note]


def test_of_an_upsampled_song_only_what_the_sampled_levels_hear_counts(runs: Path):
    notes = notes_of(runs, upsample="a.json", genres=["waltz"], song_seconds=9.0)
    told = "no level of middle, bottom, which are sampled, is told"
    assert f"lyrics are not heard: {told} any" in notes
    assert f"song_seconds 9 is not heard: {told} its place in the song" in notes
    below = notes_of(runs, upsample="a.json", upsample_from="middle", genres=["waltz"])
    assert any(note.startswith("genres 'waltz' is not heard: no level of bottom") for note in below)


def test_a_level_that_is_not_sampled_is_a_note(runs: Path):
    notes = notes_of(runs, upsample="a.json", temperature={"top": 0.5, "bottom": 0.9})
    assert "temperature of top is not used: no such level is sampled" in notes


def test_the_note_is_printed_and_is_in_the_song_s_record(runs: Path, tmp_path: Path, capsys):
    valid, _ = parse_requests([{**GOOD, "language": "Klingon"}])
    with limited_time(60):
        assert not SamplingRun(Jukebox(runs), valid, tmp_path / "out").run()
    note = "language 'Klingon' is not heard: no level of these runs is told a language"
    assert note in json.loads((tmp_path / "out/good.json").read_text())["notes"]
    assert f"note: {note}" in capsys.readouterr().out


# ---- Whatever is written ----------------------------------------------------------------------------------------------

SETTINGS = st.sampled_from(
    [
        *("id", "artist", "genres", "year", "moods", "language", "lyrics", "aligned", "seconds"),
        *("song_seconds", "seed", "temperature", "top_k", "top_p", "guidance", "hop_fraction"),
        *("variations", "prompt", "keep_seconds", "upsample", "infill", "replace", "bogus"),
    ]
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["top", "bottom", "x"]), inner, max_size=2)
    ),
    max_leaves=5,
)


@given(st.lists(st.dictionaries(SETTINGS, VALUES, max_size=5), max_size=4))
@settings(max_examples=200, deadline=None)
def test_every_request_is_taken_or_refused_and_the_good_one_is_always_made(entries: list[dict]):
    entries = [entry for entry in entries if entry.get("id") != "good"]
    valid, refused = parse_requests([*entries, GOOD])
    assert valid[-1].id == "good"
    assert all("\n" not in line and len(line) < 3000 for line in refused)
    for request in valid:
        numbers = [request.seconds, request.song_seconds or 1.0, request.keep_seconds or 1.0]
        numbers += [number for ends in request.replace for number in ends]
        assert all(math.isfinite(number) and number <= 86_400 for number in numbers)
