"""Requests: each mistake is one clear line, and no other request suffers."""

import json
from pathlib import Path

import pytest

from megajukebox.sampling.options import requests_from_options
from megajukebox.sampling.songs.requests import SongRequest, parse_requests, read_requests
from megajukebox.training.config import override

GOOD = {"id": "good", "artist": "A", "seconds": 2}
# A mistake, and what its one line must name: the request, the setting, and what would be accepted or was given.
BAD = [
    ({"seconds": 0}, ["seconds", "greater than 0"]),
    ({"seconds": -3}, ["seconds", "greater than 0", "-3"]),
    ({"seconds": float("nan")}, ["seconds", "nan"]),
    ({"seconds": float("inf")}, ["seconds", "3600"]),
    ({"seconds": 100000}, ["seconds", "3600", "100000"]),
    ({"seconds": "long"}, ["seconds", "long"]),
    ({"song_seconds": 0}, ["song_seconds", "greater than 0"]),
    ({"id": "../up"}, ["id", "../up"]),
    ({"id": ""}, ["id"]),
    ({"id": "with space"}, ["id", "with space"]),
    ({"id": 7}, ["id", "7"]),
    ({"artis": "A"}, ["artis is no setting", "did you mean artist?"]),
    ({"tempo": 4}, ["tempo is no setting"]),
    (
        {"upsample": "a.json", "upsample_from": "bottom"},
        ["upsample_from", "'top' or 'middle'", "bottom"],
    ),
    ({"artist": ["A", "B"]}, ["artist", "string"]),
    ({"genres": 5}, ["genres"]),
    ({"seed": 1.5}, ["seed", "1.5"]),
    ({"seed": "abc"}, ["seed", "abc"]),
    ({"temperature": 0}, ["temperature", "above 0"]),
    ({"temperature": -1}, ["temperature", "above 0", "-1"]),
    ({"temperature": "hot"}, ["temperature", "hot"]),
    ({"temperature": None}, ["temperature", "None"]),
    ({"temperature": float("nan")}, ["temperature", "nan"]),
    ({"temperature": {"treble": 1}}, ["temperature", "treble", "top, middle, bottom"]),
    ({"temperature": {2: 1}}, ["temperature", "2", "top, middle, bottom"]),
    ({"temperature": {2: 1, "treble": 1}}, ["temperature", "treble", "top, middle, bottom"]),
    ({"top_k": -1}, ["top_k", "-1"]),
    ({"top_k": 2.5}, ["top_k", "2.5"]),
    ({"top_p": 1.5}, ["top_p", "1.5"]),
    ({"lyrics": ["la", "la"]}, ["lyrics", "string"]),
    ({"lyrics": "la " * 40_000}, ["lyrics", "100000"]),
    ({5: "five"}, ["5"]),
]


@pytest.mark.parametrize(("mistake", "named"), BAD, ids=lambda x: str(x)[:40])
def test_a_bad_request_is_one_line_that_names_it_and_the_others_go_on(
    mistake: dict, named: list[str]
) -> None:
    good, wrong = parse_requests([GOOD, {"id": "bad", "seconds": 1, **mistake}, {"id": "last"}])
    assert [request.id for request in good] == ["good", "last"]
    assert len(wrong) == 1 and "\n" not in wrong[0] and len(wrong[0]) < 300
    assert wrong[0].startswith(f"request {mistake.get('id', 'bad')}: ")
    for word in named:
        assert word in wrong[0], wrong[0]


@pytest.mark.parametrize("entry", ["a song", 5, None, ["id"]])
def test_an_entry_that_is_no_request_is_named_by_its_number(entry: object) -> None:
    good, wrong = parse_requests([GOOD, entry])
    assert [r.id for r in good] == ["good"] and wrong == [
        f"request 1: {entry!r} is not a mapping of settings"
    ]


def test_an_id_may_be_used_once() -> None:
    good, wrong = parse_requests([GOOD, {"id": "good", "artist": "B"}])
    assert [r.artist for r in good] == ["A"]
    assert wrong == ["request 1: id 'good' was used before; give each request its own"]


def test_requests_without_an_id_are_numbered_by_their_place() -> None:
    good, wrong = parse_requests([{}, {"seconds": -1}, {}], "songs")
    assert [r.id for r in good] == ["songs-000", "songs-002"]
    assert len(wrong) == 1 and "request 1: seconds" in wrong[0]


def test_one_temperature_is_for_every_level_and_a_mapping_for_those_it_names() -> None:
    every = SongRequest(id="a", temperature=0.9, top_k=5)
    assert [every.at("temperature", level, 1.0) for level in ("top", "middle", "bottom")] == [
        0.9,
        0.9,
        0.9,
    ]
    some = SongRequest(id="a", temperature={"top": 0.95}, top_p={"bottom": 0.5})
    assert [some.at("temperature", level, 0.99) for level in ("top", "middle")] == [0.95, 0.99]
    assert [some.at("top_p", level, 0.0) for level in ("middle", "bottom")] == [0.0, 0.5]


def test_names_are_lists_whatever_was_written() -> None:
    request = SongRequest(id="a", artist="A", genres="rock", year=1999, moods=["calm", "warm"])
    assert [
        request.names(n) for n in ("artist", "genres", "year", "moods", "language", "tempo")
    ] == [
        ["A"],
        ["rock"],
        ["1999"],
        ["calm", "warm"],
        [],
        [],
    ]


def test_a_request_survives_json() -> None:
    request = SongRequest(id="a", genres=("x", "y"), lyrics="Ля ля\n", seed=2**70, temperature=0.9)
    assert SongRequest(**json.loads(json.dumps(request.model_dump(mode="json")))) == request


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**70, -(2**64)])
def test_any_integer_is_a_seed(seed: int) -> None:
    good, wrong = parse_requests([{"id": "a", "seed": seed}])
    assert good[0].seed == seed and not wrong


def test_requests_are_read_from_yaml_and_json_and_one_alone_needs_no_list(tmp_path: Path) -> None:
    (tmp_path / "songs.yaml").write_text("- {artist: Ärger, seconds: 3}\n- {id: two}\n")
    (tmp_path / "songs.json").write_text('[{"artist": "\\u00c4rger", "seconds": 3}, {"id": "two"}]')
    (tmp_path / "one.yaml").write_text("id: one\nlyrics: |\n  la\n  la\n")
    yaml, json_, one = (
        read_requests(tmp_path / name) for name in ("songs.yaml", "songs.json", "one.yaml")
    )
    assert (
        yaml == json_
        and [r.id for r in yaml[0]] == ["songs-000", "two"]
        and yaml[0][0].artist == "Ärger"
    )
    assert one[0][0].lyrics == "la\nla\n"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("none.yaml", None, "cannot be read; give a YAML or JSON list"),
        ("cut.json", b'[{"id": ', "is not YAML or JSON"),
        ("cut.yaml", b"- {id: ", "is not YAML or JSON"),
        ("bytes.yaml", b"\xff\xfe\xfa", "is not YAML or JSON"),
        ("empty.yaml", b"", "holds no list of requests"),
        ("none.json", b"[]", "holds no list of requests"),
        ("text.yaml", b"just words", "holds no list of requests"),
    ],
)
def test_a_file_that_holds_no_requests_says_so(
    tmp_path: Path, name: str, content: bytes | None, told: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=told):
        read_requests(tmp_path / name)


def test_a_folder_in_place_of_a_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_requests(tmp_path)


def test_the_command_line_tells_one_song_with_any_setting_of_a_request() -> None:
    settings = ["temperature.top=0.9", "guidance=2", "moods=[calm, warm]", "seconds=3"]
    asked = {"artist": "A", "seconds": 9, "seed": None}
    for setting in settings:
        override(asked, setting)
    (good,), wrong = requests_from_options(None, asked)
    assert not wrong and (good.id, good.artist, good.seconds, good.moods) == (
        "song",
        "A",
        3,
        ("calm", "warm"),
    )
    assert good.temperature == {"top": 0.9} and good.at("guidance", "bottom", 1) == 2
    assert requests_from_options(None, {"temprature": 1})[1] == [
        "request song: temprature is no setting; did you mean temperature?"
    ]


def test_what_the_command_line_tells_beside_a_file_of_requests_is_refused_and_not_forgotten(
    tmp_path: Path,
) -> None:
    (tmp_path / "songs.yaml").write_text("- {id: two}\n")
    assert requests_from_options(tmp_path / "songs.yaml", {"artist": None})[0] == [
        SongRequest(id="two")
    ]
    with pytest.raises(ValueError, match="artist, temperature cannot be given beside --requests"):
        requests_from_options(tmp_path / "songs.yaml", {"artist": "A", "temperature": 0.9})
