"""megajukebox/data/ingest/discover.py: what the user has, and what the user is told when something is wrong with it."""

import json
from pathlib import Path

import pytest

from megajukebox.data.ingest.discover import find_songs
from megajukebox.data.ingest.manifest import COLUMNS
from megajukebox.records.ingest_notes import IngestNote, NoteKind


def put(folder: Path, **files: str) -> Path:
    """Files by name, in which `___` stands for a slash and `__` for a dot."""
    for name, text in files.items():
        path = folder / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return folder


def manifest(folder: Path, *lines: object) -> Path:
    path = put(folder, a__wav="") / "songs.jsonl"
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines),
        encoding="utf-8",
    )
    return path


def test_a_folder_gives_its_songs_in_order_with_what_lies_beside_them(tmp_path):
    put(
        tmp_path,
        b__flac="",
        a___z__ogg="",
        a__WAV="",
        c__mp3="",
        notes__md="",
        a__json='{"artist": "Ilune"}',
    )
    put(
        tmp_path,
        b__txt="la la\r\nla",
        c__lrc="[00:01.00] la",
        c__txt="plain",
        b__json='{"genres": "x; y;x", "year": 1999}',
    )
    songs = find_songs(tmp_path)
    assert [song.name for song in songs] == ["a.WAV", "a/z.ogg", "b.flac", "c.mp3"]
    assert songs[0].metadata == {"artist": "Ilune"} and songs[0].path == tmp_path / "a.WAV"
    assert songs[2].metadata == {"genres": ["x", "y"], "year": 1999}
    assert (songs[2].lyrics, songs[2].lyrics_kind) == ("la la\nla", "txt")
    assert (songs[3].lyrics, songs[3].lyrics_kind) == ("[00:01.00] la", "lrc")
    assert songs[1].lyrics is None and songs[1].lyrics_kind is None and songs[1].metadata == {}


def test_stems_and_hidden_files_are_not_songs(tmp_path):
    put(tmp_path, a__wav="", a__stems___bass__wav="", __hidden__wav="", __trash___x__wav="")
    assert [song.name for song in find_songs(tmp_path)] == ["a.wav"]


@pytest.mark.parametrize(
    ("sidecar", "kind", "said"),
    [
        (b'{"title": "T", "year": ', NoteKind.bad_sidecar, "a.json: not valid JSON"),
        (b'["x"]', NoteKind.bad_sidecar, "a.json: list instead of an object"),
        (b'{"title": "T", "year": "soon"}', NoteKind.bad_field, "field 'year' is 'soon'"),
        (b'{"title": "T", "artist": 7}', NoteKind.bad_field, "field 'artist' is 7"),
        (b'{"title": "T", "genres": [1]}', NoteKind.bad_field, "field 'genres' is"),
        (b"\xff{}", NoteKind.bad_sidecar, "a.json: not UTF-8"),
        (b" \n", NoteKind.empty_sidecar, "a.json is empty"),
        (b'{"title": "T", "artist": "A\\u0001B"}', NoteKind.bad_field, "it holds U+0001"),
        (b'{"title": "T", "artist": "Zo\\ufffd"}', NoteKind.bad_field, "it holds U+FFFD"),
    ],
)
def test_a_bad_sidecar_costs_itself_and_not_its_song(tmp_path, sidecar, kind, said):
    put(tmp_path, a__wav="", a__txt="la", b__wav="")
    (tmp_path / "a.json").write_bytes(sidecar)
    a, b = find_songs(tmp_path)
    assert (a.refusal, a.lyrics, b.refusal, b.notes) == (None, "la", None, ())
    assert a.metadata == ({"title": "T"} if kind is NoteKind.bad_field else {})
    (note,) = a.notes
    assert (note.source, note.kind) == ("a.wav", kind) and said in note.detail


def test_unknown_fields_of_a_sidecar_are_ignored_with_a_note(tmp_path):
    put(tmp_path, a__wav="", a__json='{"title": "T", "bpm": 120, "isrc": "x"}')
    (song,) = find_songs(tmp_path)
    assert song.metadata == {"title": "T"} and song.refusal is None
    assert song.notes == (IngestNote("a.wav", NoteKind.unknown_field, "a.json: ignored bpm, isrc"),)


def test_a_jsonl_manifest_is_read_in_its_order_from_its_own_folder(tmp_path):
    put(tmp_path, x___b__wav="", words__lrc="[00:01.00] la", A__wav="")
    path = manifest(
        tmp_path,
        {"path": "x/b.wav", "genres": ["g"], "moods": "m;n", "year": "2001", "lyrics": "a\u2028b"},
        "",
        {"path": str(tmp_path / "A.wav"), "lyrics_path": "words.lrc", "title": None},
    )
    path.write_text(path.read_text().replace("\\u2028", "\u2028"), encoding="utf-8")
    first, second = find_songs(path)
    assert first.path == tmp_path / "x" / "b.wav" and first.name == "x/b.wav"
    assert first.metadata == {"genres": ["g"], "year": 2001, "moods": ["m", "n"]}
    assert first.lyrics == "a\u2028b" and first.lyrics_kind == "txt"
    assert second.lyrics_kind == "lrc" and second.metadata == {}


def test_a_csv_manifest_means_the_same_as_jsonl(tmp_path):
    put(
        tmp_path,
        a__wav="",
        songs__csv='\ufeffpath,genres,year,lyrics,artist\na.wav,x;y,1999,"one\ntwo",\n',
    )
    (song,) = find_songs(tmp_path / "songs.csv")
    assert song.metadata == {"genres": ["x", "y"], "year": 1999} and song.lyrics == "one\ntwo"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"path": "a.wav", "bpm": 1}, ["line 2", "unknown field 'bpm'", ", ".join(COLUMNS)]),
        ({"path": "gone.wav"}, ["line 2", "field 'path' is 'gone.wav'", "there is no file"]),
        ({"artist": "x"}, ["line 2", "field 'path' is None", "give the path"]),
        (
            {"path": "a.wav", "year": "soon"},
            ["line 2", "field 'year' is 'soon'", "leave the field out"],
        ),
        ({"path": "a.wav", "year": 123456}, ["line 2", "field 'year' is 123456", "9999"]),
        ({"path": "a.wav", "genres": {"a": 1}}, ["line 2", "field 'genres' is {'a': 1}"]),
        ({"path": "a.wav", "lyrics": ["x"]}, ["line 2", "field 'lyrics' is ['x']"]),
        (
            {"path": "a.wav", "lyrics_path": "gone.txt"},
            ["line 2", "field 'lyrics_path' is 'gone.txt'"],
        ),
        (
            {"path": "a.wav", "lyrics_path": "a.wav"},
            ["line 2", "field 'lyrics_path' is", ".lrc (timed)"],
        ),
        ({"path": "a.wav", "lyrics_path": "a.txt", "lyrics": "x"}, ["line 2", "keep one of them"]),
        ('{"path": "a.wav"', ["line 2", "not valid JSON"]),
        ('"a.wav"', ["line 2", "str instead of an object"]),
    ],
)
def test_a_mistake_in_a_manifest_costs_its_row_and_names_file_line_field_value_and_the_way_out(
    tmp_path, line, said
):
    first, bad, last = find_songs(manifest(tmp_path, {"path": "a.wav"}, line, {"path": "a.wav"}))
    assert first.refusal is None and last.refusal is None
    assert bad.name == "songs.jsonl line 2" and bad.refusal.startswith("bad row: songs.jsonl")
    assert [words for words in said if words not in bad.refusal] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,bpm\na.wav,\n", "line 1: unknown field 'bpm'; the known ones are path, artist"),
        ("artist\nx\n", "line 1: there is no column 'path'"),
        ("path,artist\n", "holds no lines"),
        ("path,artist,artist\na.wav,b,c\n", "line 1: column 'artist' stands twice; keep one"),
        ("path;artist\na.wav;b\n", "line 1: semicolons separate the columns; save the file with"),
        ("Path,artist\na.wav,b\n", "line 1: unknown field 'Path'; did you mean 'path'?"),
    ],
)
def test_a_mistake_in_the_header_of_a_csv_refuses_it(tmp_path, text, said):
    put(tmp_path, a__wav="", songs__csv=text)
    with pytest.raises(ValueError, match=said):
        find_songs(tmp_path / "songs.csv")


def test_sources_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"gone' does not exist; give a folder"):
        find_songs(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"holds no audio files \(.wav, .flac, .ogg, .mp3\)"):
        find_songs(tmp_path)
    with pytest.raises(ValueError, match=r"neither \.jsonl nor \.csv"):
        find_songs(put(tmp_path, songs__json="{}") / "songs.json")


def test_absurdly_long_lyrics_cost_themselves(tmp_path):
    put(tmp_path, a__wav="", a__txt="x" * 200_001)
    (song,) = find_songs(tmp_path)
    assert song.lyrics is None and song.notes[0].kind is NoteKind.bad_sidecar
    assert "a.txt: lyrics of 200001 characters" in song.notes[0].detail


def test_a_link_that_leaves_the_folder_is_refused_and_one_within_is_read(tmp_path):
    secret = put(tmp_path, secret__txt="hush", far__wav="far") / "secret.txt"
    folder = put(
        tmp_path / "songs", near__wav="near", near__txt="la", a__wav="", b__wav="", d__wav=""
    )
    (folder / "a.txt").symlink_to(secret)
    (folder / "b.json").symlink_to(secret)
    (folder / "c.wav").symlink_to(tmp_path / "far.wav")
    (folder / "d.txt").symlink_to(folder / "near.txt")
    (folder / "e.wav").symlink_to("near.wav")
    for given in (folder, linked(tmp_path / "link", folder)):
        found = {song.name: song for song in find_songs(given)}
        refused = {name: song.refusal for name, song in found.items() if song.refusal}
        assert list(refused) == ["c.wav"] and refused["c.wav"].startswith("link: ")
        for name in ("a.wav", "b.wav"):  # a link beside a song costs itself
            (note,) = found[name].notes
            assert note.kind is NoteKind.bad_sidecar
            assert "is a link that leaves the folder; put the file there, or give --follow" in (
                note.detail
            )
            assert found[name].lyrics is None and found[name].metadata == {}
        assert found["d.wav"].lyrics == "la"
        with found["e.wav"].open() as file:
            assert file.read() == b"near"
    followed = {song.name: song for song in find_songs(folder, follow_links=True)}
    assert followed["a.wav"].lyrics == "hush" and not followed["c.wav"].refusal
    with followed["c.wav"].open() as file:
        assert file.read() == b"far"


def linked(link: Path, to: Path) -> Path:
    link.symlink_to(to)
    return link


def test_a_song_that_became_a_link_after_it_was_found_is_not_opened(tmp_path):
    put(tmp_path, secret__wav="hush")
    folder = put(tmp_path / "songs", a__wav="song")
    (song,) = find_songs(folder)
    (folder / "a.wav").unlink()
    (folder / "a.wav").symlink_to(tmp_path / "secret.wav")
    with pytest.raises(OSError, match="is a link"):
        song.open()


def test_a_file_beside_a_song_without_end_costs_itself(tmp_path):
    put(tmp_path, a__wav="")
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(8 << 30)
    (song,) = find_songs(tmp_path)
    assert song.notes[0].kind is NoteKind.bad_sidecar and "has more than" in song.notes[0].detail
