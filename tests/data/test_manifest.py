"""Manifests are read in one way or refused: rows by themselves, what makes a whole file doubtful with it (cases 16, 19, 27)."""

import csv
import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fixtures.fuzzing import limited_time, mutated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from megajukebox.commands.prepare import main
from megajukebox.common.command_line import command_app
from megajukebox.common.errors import EXIT_FATAL, UserError
from megajukebox.data.ingest.manifest import songs_of_manifest
from megajukebox.data.ingest.source_song import MAX_LYRICS, SourceSong


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("s0.wav", "s1.wav", "s2.wav"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def songs_of(folder: Path, text: str, name: str = "songs.csv") -> list[SourceSong]:
    (folder / name).write_text(text, encoding="utf-8")
    return songs_of_manifest(folder / name)


# ---- A file that can be read in two ways ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('path,artist\ns0.wav,"A\ns1.wav,B\ns2.wav,C\n', 2),
        ('path,artist\ns0.wav,A\ns1.wav,B\n"s2.wav,C\n', 4),
        ('path,artist\r\ns0.wav,A\r\ns1.wav,"B\r\n', 3),
        ('"path,artist\ns0.wav,A\n', 1),
    ],
)
def test_an_open_quote_refuses_the_file_with_the_line_that_opens_it(folder: Path, text, line):
    with pytest.raises(UserError, match=rf"songs.csv line {line}: a quote is opened and never"):
        songs_of(folder, text)


def test_a_quote_that_a_later_one_closes_costs_the_rows_that_it_takes_in_and_no_other(folder: Path):
    text = 'path,artist,title\ns0.wav,"A,x\ns1.wav,B",y\ns2.wav,C,z\n'
    first, last = songs_of(folder, text)
    assert "field 'artist' goes from line 2 to line 3, as 'A,x\\ns1.wav,B'" in str(first.refusal)
    assert (last.metadata, last.refusal) == ({"artist": "C", "title": "z"}, None)


def test_lyrics_that_swallow_a_row_are_refused_and_those_of_several_lines_are_read(folder: Path):
    swallowed = 'path,lyrics\ns0.wav,"la la\ns1.wav,lu"\ns2.wav,li\n'
    first, last = songs_of(folder, swallowed)
    assert "hold line 3, 's1.wav,lu\"', which reads like a row" in str(first.refusal)
    assert last.lyrics == "li"
    (song,) = songs_of(folder, 'path,lyrics\ns0.wav,"la, la\nI said ""play it"", Sam"\n')
    assert (song.lyrics, song.refusal) == ('la, la\nI said "play it", Sam', None)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('s1.wav,"A"B,x', "line 3: not valid CSV"),
        ("s1.wav,B,x,more", "line 3: more cells than the header has columns"),
        ("s1.wav,B,199o", "line 3: field 'year' is '199o'"),
        ("s1.wav,B,true", "line 3: field 'year' is 'true'"),
        ("gone.wav,B,1999", "line 3: field 'path' is 'gone.wav', "),
        (",B,1999", "line 3: field 'path' is None"),
    ],
)
def test_a_bad_row_of_a_csv_costs_itself(folder: Path, row: str, reason: str):
    text = f"path,artist,year\ns0.wav,A,1998\n{row}\ns2.wav,C,2000\n"
    first, bad, last = songs_of(folder, text)
    assert (first.metadata["year"], last.metadata["year"]) == (1998, 2000)
    assert reason.rstrip(", ") in str(bad.refusal)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"path":"s1.wav","artist":"First","artist":"Second"}', "'artist' is given twice"),
        ('{"path":"s1.wav","year":true}', "field 'year' is True; must be a number, not true"),
        ('{"path":"s1.wav","year":1e400}', "field 'year' is inf"),
        ('{"path":"s1.wav","year":' + "9" * 300 + "}", "field 'year' is 999"),
        ('{"path":"s1.wav","year":' + "9" * 9999 + "}", "not valid JSON"),
        ('{"path":"s1.wav","genres":' + "[" * 100_000, "not valid JSON"),
        ('{"path":"s1.wav","genres":' + "[" * 99 + "]" * 99 + "}", "goes deeper than 64"),
        ('{"path":"s1.wav","artist":"' + "x" * 1001 + '"}', "at most 1000 characters"),
        ('{"path":"' + "y" * 5000 + '.wav"}', "there is no file"),
        ('{"path":"a\\u0000b.wav"}', "there is no file"),
        ('{"path":"\\ud800.wav"}', "there is no file"),
        ("NaN", "float instead of an object"),
    ],
    ids=lambda value: value[:30],
)
def test_a_bad_line_of_a_jsonl_costs_itself(folder: Path, line: str, reason: str):
    first, bad, last = songs_of(
        folder, f'{{"path":"s0.wav"}}\n{line}\n\ufeff{{"path":"s2.wav"}}\n', "songs.jsonl"
    )
    assert first.refusal is None and last.refusal is None
    assert bad.refusal and reason in bad.refusal and "songs.jsonl line 2" in bad.refusal
    assert len(bad.refusal) < 400 and "\n" not in bad.refusal


# ---- Long cells and names ------------------------------------------------------------------------------------------


def test_a_long_cell_is_read_up_to_the_limit_of_lyrics_and_named_with_its_own_line(folder: Path):
    long = "la " * (140_000 // 3)
    too_long = "x" * (MAX_LYRICS + 1)
    text = f'path,lyrics\ns0.wav,short\ns1.wav,"{long}"\ns2.wav,{too_long}\n'
    before = csv.field_size_limit()
    short, read, refused = songs_of(folder, text)
    assert short.lyrics == "short" and read.lyrics == long
    assert f"line 4: lyrics of {MAX_LYRICS + 1} characters; at most" in str(refused.refusal)
    assert csv.field_size_limit() == before, "others in this process read CSVs too"


def test_words_in_the_column_of_a_path_are_told_where_they_belong(folder: Path):
    row = {"path": "s0.wav", "lyrics_path": "la la " * 200}
    for text, name in (
        (f"path,lyrics_path\ns0.wav,{'la la ' * 200}\n", "songs.csv"),
        (json.dumps(row), "songs.jsonl"),
    ):
        (song,) = songs_of(folder, text, name)
        assert "field 'lyrics_path' is 'la la" in str(song.refusal)
        assert "it names a file, and there is none; words go into the field 'lyrics'" in str(
            song.refusal
        )


def wav(path: Path, seconds: float = 1.5) -> None:
    time = np.arange(int(8000 * seconds)) / 8000
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * (300 + len(path.name)) * time), 8000)


def prepare(*arguments: object):
    options = ["--sample-rate", "8000", "--lyrics-vocabulary", "0", "--processes", "1"]
    return CliRunner().invoke(command_app(main, "prepare"), [*map(str, arguments), *options])


def test_a_name_as_long_as_names_may_be_is_a_song_and_one_too_long_is_no_traceback(tmp_path: Path):
    music = tmp_path / "music"
    music.mkdir()
    wav(music / "fine.wav")
    wav(music / ("y" * 251 + ".wav"))
    done = prepare(music, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out/index.json").read_text())["songs"] == 2
    gone = prepare("z" * 5000, "--out", tmp_path / "out2")
    assert gone.exit_code == EXIT_FATAL and "does not exist" in gone.output


def test_prepare_takes_the_good_rows_lists_the_bad_ones_and_says_of_none_why(tmp_path: Path):
    wav(tmp_path / "a.wav")
    (tmp_path / "songs.jsonl").write_text('{"path":"a.wav"}\n{"path":"a.wav","year":true}\n')
    done = prepare(tmp_path / "songs.jsonl", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    (line,) = (tmp_path / "out/refused.jsonl").read_text().splitlines()
    assert json.loads(line)["song"] == "songs.jsonl line 2"
    assert json.loads(line)["reason"] == "bad row"
    (tmp_path / "bad.csv").write_text("path,lyrics_path\na.wav,la la la\n")
    none = prepare(tmp_path / "bad.csv", "--out", tmp_path / "out2")
    assert none.exit_code == EXIT_FATAL
    assert "field 'lyrics_path' is 'la la la'" in " ".join(none.output.split())


# ---- Whatever is written ------------------------------------------------------------------------------------------

CELLS = st.text(
    st.characters(
        codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="\ufffd"
    ),
    max_size=12,
)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=4), st.sampled_from(["\n", "\r\n"]))
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_a_writer_of_csv_writes_is_read_as_it_was(folder: Path, rows, end: str):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=end)
    writer.writerow(["path", "artist", "lyrics"])
    for artist, words in rows:
        writer.writerow(["s0.wav", artist, f"{words}\n{words}"])
    (folder / "songs.csv").write_bytes(text.getvalue().encode())
    songs = songs_of_manifest(folder / "songs.csv")
    assert len(songs) == len(rows)
    for song, (artist, words) in zip(songs, rows):
        assert song.refusal is None and song.metadata.get("artist", "") == artist.strip()
        assert (song.lyrics or "") == (f"{words}\n{words}" if words.strip() else "")


MANIFESTS = {
    "songs.csv": b'path,artist,year,genres,lyrics\ns0.wav,"A, B",1999,x;y,"la ""la""\nlu"\ns1.wav,C,,,\n'
    b"s2.wav,D,2001,z,li\n",
    "songs.jsonl": b'{"path": "s0.wav", "artist": "A", "year": 1999, "genres": ["x", "y"]}\n\n'
    b'{"path": "s1.wav", "lyrics": "la\\nlu", "language": "en"}\n{"path": "s2.wav"}\n',
}


def fuzz_manifest(draw: random.Random, folder: Path) -> None:
    """Taken, or refused by row or file, and never more songs than lines."""
    name = draw.choice(sorted(MANIFESTS))
    data = mutated(MANIFESTS[name], draw, texts=draw.random() < 0.5)
    (folder / name).write_bytes(data)
    try:
        songs = songs_of_manifest(folder / name)
    except UserError as refused:
        assert name in str(refused)
        return
    assert len(songs) <= data.count(b"\n") + data.count(b"\r") + 1
    for song in songs:
        assert song.refusal or song.path.is_file()
        assert not song.refusal or name in song.refusal
        json.dumps([song.metadata, song.lyrics])


@pytest.mark.parametrize(
    "count", [300, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_any_bytes_are_a_manifest_or_refused(folder: Path, count: int):
    for seed in range(count):
        with limited_time(20):
            fuzz_manifest(random.Random(seed), folder)
