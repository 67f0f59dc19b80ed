"""Sections of a song: every source, which of them counts, kinds in many languages, and what is wrong with broken ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from megajukebox.common.errors import BadSampleError, UserError
from megajukebox.conditioning.section_kinds import SECTION_KINDS, heading_of, kind_of
from megajukebox.conditioning.song_sections import (
    LabelledSection,
    SectionReturn,
    checked_sections,
    read_label_lines,
    resolve_sections,
    returns_of,
    section_fields,
    stored_returns,
    stored_sections,
)


@pytest.mark.parametrize(
    ("kind", "headings"),
    {
        "verse": "Verse 1;verse;VERSE II;Strophe 2;Couplet 1;Verso;Estrofa;Куплет 3;主歌;Verse 2: Ada;벌스 1",
        "chorus": "Chorus;Refrain (x2);chorus 2x;Hook;Estribillo;Refrão;Ritornello;Припев;サビ;副歌;후렴;"
        "Post-Chorus;Final Chorus;Kehrreim;2nd Chorus;Refräng",
        "pre-chorus": "Pre-Chorus;Pre Chorus 2;prechorus;Pré-Refrain;Предприпев;Bメロ;Vorrefrain",
        "bridge": "Bridge;Middle 8;Pont;Brücke;Puente;Ponte;Бридж;Cメロ",
        "inst": "Instrumental Break;Guitar Solo;Interlude;Zwischenspiel;Проигрыш;間奏",
        "intro": "Intro;Einleitung;Вступление;前奏;Lead-In",
        "outro": "Outro;Coda;Schluss;アウトロ;尾奏",
        "unknown": "Ada;A;la la la;;Chorusline;universe;silence",
    }.items(),
)
def test_kinds_are_known_by_their_words_in_many_languages(kind: str, headings: str) -> None:
    assert {heading: kind_of(heading) for heading in headings.split(";")} == dict.fromkeys(
        headings.split(";"), kind
    )


def test_headings_are_told_from_what_is_sung() -> None:
    assert heading_of("[Chorus 2]") == "Chorus 2" and heading_of("  (Refrain)") == "Refrain"
    assert heading_of("Refrain 2:") == "Refrain" and heading_of("【サビ】") == "サビ"
    assert heading_of("[Theme of Ada]") == "Theme of Ada", "square brackets name anything"
    for sung in ("(ooh, ooh)", "I sing the chorus", "She said:", "[Verse] and on", "", "chorus"):
        assert heading_of(sung) is None, sung


def test_label_files_have_seconds_or_minutes_with_or_without_an_end() -> None:
    text = "# by SongFormer\n0 intro\n12,4\tVerse 1\r\n1:02.5 93.25 chorus\n100 end\n"
    assert read_label_lines(text) == [
        {"kind": "intro", "start": 0.0, "from": "txt", "end": 12.4},
        {"kind": "Verse 1", "start": 12.4, "from": "txt", "end": 62.5},
        {"kind": "chorus", "start": 62.5, "from": "txt", "end": 93.25},
    ]
    assert read_label_lines("3 a; 1 b")[0]["kind"] == "b", "in order of time"


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ("chorus", "no list"),
        ([1], "no mapping"),
        ([{"kind": 3, "start": 0}], "must be a word"),
        ([{"kind": " ", "start": 0}], "must be a word"),
        ([{"kind": "verse"}], "`start` is None"),
        ([{"kind": "verse", "start": True}], "`start` is True"),
        ([{"kind": "verse", "start": -1}], "`start` is -1"),
        ([{"kind": "verse", "start": float("nan")}], "`start` is nan"),
        ([{"kind": "verse", "start": 2, "end": 2}], "ends at 2 s"),
        ([{"kind": "a", "start": 2}, {"kind": "b", "start": 2}], "two sections start at 2 s"),
        ([{"kind": "a", "start": n} for n in range(1001)], "at most 1000"),
    ],
)
def test_broken_sections_are_named(entries: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        checked_sections(entries)


@pytest.mark.parametrize("line", ["verse 12", "12.4", "-1 verse", "a:b verse", "1e5 verse"])
def test_a_line_of_another_form_is_named(line: str) -> None:
    with pytest.raises(UserError, match=r"line 2: .* is not `seconds label`"):
        read_label_lines(f"0 intro\n{line}\n")


def names(sections: list[LabelledSection]) -> list[tuple[str, float, float, str]]:
    return [(s.name, round(s.start, 2), round(s.end, 2), s.source) for s in sections]


HEADED = """[00:01.00][Verse 1]
[00:01.50]snow on the road
[Chorus]
[00:05.00]<00:05.50>come <00:06.00>home <00:06.50>
[00:09.00][Verse 2]
[00:10.00]rain on the sea
Refrain:
[00:12.00]come home
"""


def test_headings_of_timed_lyrics_begin_sections_and_choruses_return() -> None:
    sections, changed = resolve_sections([], HEADED, 20.0)
    assert names(sections) == [
        ("verse", 1.0, 5.5, "lrc"),
        ("chorus", 5.5, 9.0, "lrc"),
        ("verse", 9.0, 12.0, "lrc"),
        ("chorus", 12.0, 20.0, "lrc"),
    ]
    assert not changed
    assert returns_of(sections) == [
        SectionReturn(9.0, 12.0, 1.0),
        SectionReturn(12.0, 15.5, 5.5),
    ], "a return lasts as long as both do"


def test_lines_that_come_again_are_a_chorus_where_nothing_is_headed() -> None:
    lines = ["one by one", "come home", "sing it out", "two by two", "come home", "sing it out"]
    lyrics = "".join(f"[00:{4 * n:02d}.00]{line}\n" for n, line in enumerate(lines))
    assert names(resolve_sections([], lyrics, 30.0)[0]) == [
        ("chorus", 4.0, 12.0, "words"),
        ("chorus", 16.0, 23.0, "words"),
    ]
    assert resolve_sections([], "\n".join(lines), 30.0) == ([], 0), "plain words have no times"
    chant = "".join(f"[00:{4 * n:02d}.00]la la\n" for n in range(4))
    assert resolve_sections([], chant, 30.0) == ([], 0), "one stretch comes back nowhere"


def test_what_is_given_counts_before_lyrics_and_ends_with_the_song() -> None:
    given = read_label_lines("0 intro\n4 Theme\n8 theme\n30 outro")
    sections, changed = resolve_sections(given, HEADED, 10.0)
    assert names(sections) == [
        ("intro", 0, 4, "txt"),
        ("theme", 4, 8, "txt"),
        ("theme", 8, 10, "txt"),
    ]
    assert changed == 2, "one is cut, one lies behind the end"
    assert returns_of(sections) == [SectionReturn(8, 10, 4)], "labels of no kind return by name"
    stored = json.loads(json.dumps(section_fields(sections, returns_of(sections))))
    assert stored_sections(stored) == sections and stored_returns(stored) == [
        SectionReturn(8, 10, 4)
    ]
    del stored["returns"]
    assert (
        stored_returns(stored) == [SectionReturn(8, 10, 4)]
        and stored_sections({}) == stored_returns({}) == []
    )


def test_sections_of_no_name_return_nowhere() -> None:
    unknown = [LabelledSection("unknown", 4.0 * n, 4.0 * n + 4, "txt") for n in range(3)]
    assert returns_of(unknown) == []


@pytest.mark.parametrize(
    "metadata",
    [
        {"sections": "chorus"},
        {"sections": [{"kind": "chorus", "start": 1}]},
        {"sections": [[0, 1, "chorus"]]},
        {"returns": [[4, 6, 5]]},
        {"returns": [[6, 4, 1]]},
        {"returns": [[4, 6]]},
        {"returns": [["4", 6, 1]]},
        {"returns": 3},
        {"returns": [[4, float("inf"), 1]]},
    ],
)
def test_a_shard_that_says_something_else_is_a_bad_sample(metadata: dict[str, Any]) -> None:
    with pytest.raises(BadSampleError):
        stored_sections(metadata)
        stored_returns(metadata)


def test_kinds_keep_their_numbers() -> None:
    """They are rows of a trained prior's table."""
    kinds = ["unknown", "intro", "verse", "pre-chorus", "chorus", "bridge", "inst", "outro"]
    assert list(SECTION_KINDS) == kinds


def song(folder: Path, name: str = "a") -> None:
    import numpy as np
    import soundfile

    noise = np.random.default_rng(len(name)).uniform(-0.3, 0.3, (80000, 1))
    soundfile.write(folder / f"{name}.wav", noise, 8000)


def prepared(folder: Path) -> tuple[dict[str, dict], list[tuple[str, str]]]:
    """(JSON of each song by the name of its file, (kind, detail) of the notes) of a prepared folder."""
    from megajukebox.commands.prepare import main as prepare
    from megajukebox.data.shards.shard_set import ShardSet
    from megajukebox.records.ingest_notes import read_notes

    out = folder.parent / "shards"
    prepare(str(folder), out, sample_rate=8000, processes=1, lyrics_vocabulary=0)
    shards = ShardSet(out)
    facts = [shards.read_facts(n) for n in range(len(shards))]
    notes = [(note.kind.value, note.detail) for note in read_notes(out)]
    return {one["source"]: one for one in facts}, notes


def test_prepare_takes_sections_from_every_side_car_and_notes_what_it_does_not(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "songs"
    folder.mkdir()
    for name in ("a", "bb", "ccc", "dddd", "eeeee"):
        song(folder, name)
    fields = {
        "sections": [{"kind": "Refrain", "start": 2, "end": 4}, {"kind": "verse", "start": 5}]
    }
    (folder / "a.json").write_text(json.dumps(fields))
    (folder / "a.sections.txt").write_text("0 intro\n")
    (folder / "BB.Sections.txt").write_text("0 verse\n3 chorus\n6 verse\n9 chorus\n40 end\n")
    (folder / "bb.lrc").write_text(HEADED)
    (folder / "ccc.lrc").write_text(HEADED)
    (folder / "dddd.sections.txt").write_text("chorus at 3\n")
    (folder / "eeeee.json").write_text(
        '{"sections": [{"kind": "verse", "start": "x"}], "year": 1999}'
    )
    (folder / "nobody.sections.txt").write_text("0 verse\n")
    facts, notes = prepared(folder)
    assert facts["a.wav"]["sections"] == [
        {"kind": "chorus", "start": 2.0, "end": 4.0, "from": "json"},
        {"kind": "verse", "start": 5.0, "end": 10.0, "from": "json"},
    ]
    assert "returns" not in facts["a.wav"]
    assert [s["kind"] for s in facts["bb.wav"]["sections"]] == ["verse", "chorus"] * 2
    assert facts["bb.wav"]["returns"] == [[6.0, 9.0, 0.0], [9.0, 10.0, 3.0]]
    assert [s["from"] for s in facts["ccc.wav"]["sections"]] == ["lrc"] * 3, "of 10 s"
    assert "sections" not in facts["dddd.wav"] and "sections" not in facts["eeeee.wav"]
    assert facts["eeeee.wav"]["year"] == 1999, "a bad field costs itself"
    kinds = {kind: detail for kind, detail in notes}
    assert "a.sections.txt is not read" in kinds["unused_sidecar"]
    assert "line 1: 'chorus at 3' is not `seconds label`" in kinds["bad_sidecar"]
    assert "`start` is 'x'" in kinds["bad_field"]
    assert "cut there, or left out" in kinds["sections_outside_song"]
    assert "stray_sidecar" in kinds


def test_a_manifest_gives_sections_as_a_list_or_in_one_cell(tmp_path: Path) -> None:
    from megajukebox.data.ingest.discover import find_songs

    song(tmp_path)
    (tmp_path / "m.csv").write_text('path,sections\na.wav,"0 verse; 4 chorus"\na.wav,x\n')
    good, bad = find_songs(tmp_path / "m.csv")
    assert [s["kind"] for s in good.metadata["sections"]] == ["verse", "chorus"]
    assert bad.refusal and "field 'sections' is 'x'" in bad.refusal
    row = {"path": "a.wav", "sections": [{"kind": "verse", "start": 1}]}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    assert find_songs(tmp_path / "m.jsonl")[0].metadata["sections"][0]["start"] == 1.0
