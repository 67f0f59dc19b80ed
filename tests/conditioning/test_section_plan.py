"""The plan of a song: what was asked, headings in many languages, or a rule; lengths scaled to the song."""

import json
from itertools import pairwise

import pytest
from pydantic import ValidationError

from megajukebox.conditioning.section_plan import auto_sections, plan_sections
from megajukebox.conditioning.song_sections import (
    SectionReturn,
    section_fields,
    stored_returns,
    stored_sections,
)
from megajukebox.sampling.songs.requests import SongRequest, parse_requests


def spans(request: SongRequest) -> list[tuple[str, float, float]]:
    sections = request.section_plan.sections
    return [(s.name, round(s.start, 3), round(s.end, 3)) for s in sections]


def test_lengths_are_given_those_of_the_first_time_or_8_seconds_and_scaled() -> None:
    kinds = [{"kind": "intro", "seconds": 4}, {"kind": "verse"}, {"kind": "Refrain", "seconds": 6}]
    kinds += [{"kind": "verse"}, {"kind": "chorus", "again": 0.5}]
    request = SongRequest(id="a", seconds=64, sections=kinds)
    assert spans(request) == [
        ("intro", 0, 8),
        ("verse", 8, 24),
        ("chorus", 24, 36),
        ("verse", 36, 52),
        ("chorus", 52, 64),
    ]
    verse, chorus = request.section_plan.returns
    assert verse == SectionReturn(36, 52, 8, 1.0) and chorus == SectionReturn(52, 64, 24, 0.5)
    longer = SongRequest(id="a", seconds=10, song_seconds=64, sections=kinds)
    assert longer.section_plan == request.section_plan, "of the whole song"


def test_a_section_asked_anew_returns_from_nowhere() -> None:
    sections = [{"kind": "chorus"}, {"kind": "chorus", "again": 0}, {"kind": "chorus"}]
    plan = SongRequest(id="a", seconds=24, sections=sections).section_plan
    assert plan.returns == (SectionReturn(16, 24, 8),), "the last one is that of before"


@pytest.mark.parametrize(
    ("verse", "chorus"),
    [
        ("[Verse 1]", "[Chorus]"),
        ("[Strophe 2]", "(Refrain)"),
        ("[Couplet]", "Refrain :"),
        ("[Verso]", "[Estribillo]"),
        ("[Estrofa]", "[Refrão]"),
        ("[Strofa]", "[Ritornello]"),
        ("[Vers]", "[Refräng]"),
        ("[Куплет 1]", "[Припев]"),
        ("【主歌】", "【副歌】"),
        ("[ヴァース]", "[サビ]"),
        ("[벌스]", "[후렴]"),
    ],
)
def test_headings_in_lyrics_are_a_plan_in_eleven_languages(verse: str, chorus: str) -> None:
    lyrics = f"{verse}\none\ntwo\n\n{chorus}\nla\n{verse}\nthree\nfour\n{chorus}\nla\n"
    request = SongRequest(id="a", seconds=48, lyrics=lyrics)
    assert spans(request) == [
        ("verse", 0, 16),
        ("chorus", 16, 24),
        ("verse", 24, 40),
        ("chorus", 40, 48),
    ]
    assert [one.earlier for one in request.section_plan.returns] == [0, 16]


def test_headings_with_times_keep_them() -> None:
    lyrics = "[00:02.00][Verse]\n[00:03.00]one\n[00:08.00][Chorus]\n[00:09.00]two\n"
    request = SongRequest(id="a", seconds=20, lyrics=lyrics)
    assert spans(request) == [("verse", 2, 8), ("chorus", 8, 20)]


def test_a_rule_fills_any_length_and_songs_without_a_plan_have_none() -> None:
    assert [s.kind for s in auto_sections(30)] == ["intro", "verse", "chorus", "verse"]
    for seconds in (1, 8, 60, 200, 3600):
        plan = plan_sections("auto", "", seconds)
        assert plan.sections[-1].end == pytest.approx(seconds)
        assert all(one.earlier < one.start < one.end for one in plan.returns)
        kinds = [section.kind for section in plan.sections]
        assert all(a != b for a, b in pairwise(kinds))
    plain = SongRequest(id="a", lyrics="la la\nla la")
    assert plain.section_plan.sections == () and "sections" not in plain.model_dump()


def test_what_cannot_be_planned_is_refused() -> None:
    for sections in ([{"kind": ""}], [{"seconds": 3}], [{"kind": "a", "again": 2}], "some", 3):
        with pytest.raises(ValidationError):
            SongRequest(id="a", sections=sections)
    _, refused = parse_requests([{"id": "a", "sections": [{"kind": "verse", "seconds": -1}]}])
    assert "sections" in refused[0] and "seconds" in refused[0]


def test_the_plan_stands_in_the_record_and_is_read_back() -> None:
    plan = SongRequest(id="a", seconds=60, sections="auto").section_plan
    record = json.loads(json.dumps(section_fields(*plan)))
    assert [s.kind for s in stored_sections(record)] == [s.kind for s in plan.sections]
    assert [one[:3] for one in stored_returns(record)] == [
        tuple(round(time, 3) for time in one[:3]) for one in plan.returns
    ]
