"""What `prepare` passed over or changed: on the screen, in notes.jsonl, and with --strict in refused.jsonl."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from megajukebox.commands.prepare import main
from megajukebox.common.errors import UserError
from megajukebox.data.ingest.discover import find_collection, find_songs
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.records.ingest_notes import NOTE_KINDS, IngestNote, NoteKind, read_notes

RATE = 4_000


def put_song(path: Path, seconds: float = 1.5) -> Path:
    """A song of noise that no other one equals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(list(path.name.encode())).uniform(
        -0.5, 0.5, round(seconds * RATE)
    )
    file = io.BytesIO()
    soundfile.write(file, noise, RATE, format="WAV")
    path.write_bytes(file.getvalue())
    return path


def prepare(source: Path, out: Path, **options: object) -> ShardSet:
    """The command, in this process."""
    main(str(source), out, sample_rate=RATE, processes=1, lyrics_vocabulary=0, **options)
    return ShardSet(out)


def collection(folder: Path) -> Path:
    """One song, and of everything that is passed over one."""
    put_song(folder / "song.wav")
    put_song(folder / "song.stems" / "bass.wav")
    put_song(folder / ".trash" / "old.wav")
    put_song(folder / "far" / "other.wav")
    (folder / "near").symlink_to(folder / "far")
    for name in ("loved.mid", "cover.jpg", "._song.wav", "README"):
        (folder / name).write_bytes(b"x")
    (folder / "song.json").write_text('{"title": "T", "bpm": 3}')
    (folder / "song.lrc").write_text("[ar:nobody]\n[00:01.00]\n")
    (folder / "song.txt").write_text("la la")
    (folder / "song.wav.txt").write_text("lu lu")
    (folder / "other.lrc").write_text("[00:01.00]la")
    return folder


PASSED_OVER = {
    ("._song.wav", "hidden"),
    (".trash", "hidden"),
    ("README", "not_audio"),
    ("cover.jpg", "not_audio"),
    ("loved.mid", "other_format"),
    ("near", "folder_link"),
    ("other.lrc", "stray_sidecar"),
    ("song.stems", "stems"),
}
OF_SONG = {
    ("song.wav", "unknown_field"),
    ("song.wav", "empty_sidecar"),
    ("song.wav", "unused_sidecar"),
}


def test_everything_that_is_passed_over_is_a_line_of_notes_and_counted(tmp_path, capsys):
    shards = prepare(collection(tmp_path / "songs"), tmp_path / "out")
    assert len(shards) == 2
    notes = read_notes(tmp_path / "out")
    assert {(note.source, note.kind.value) for note in notes} == PASSED_OVER | OF_SONG
    screen = " ".join(capsys.readouterr().err.split())
    assert f"passed over or changed: {len(notes)}" in screen and ".mid" in screen
    again = prepare(tmp_path / "songs", tmp_path / "out")
    assert len(again) == 2 and read_notes(tmp_path / "out") == notes  # of shards that were kept


def test_sidecars_are_found_as_people_name_them(tmp_path):
    source = tmp_path / "songs"
    for name in ("upper.wav", "upper3.WAV", "full.wav", "caf\u00e9.wav", "both.wav", "caps.wav"):
        put_song(source / name)
    beside = {
        "upper.LRC": "[00:00.50]upper case",
        "upper3.JSON": '{"artist": "Upper"}',
        "full.wav.lrc": "[00:00.50]full name",
        "full.WAV.json": '{"artist": "Full"}',
        "cafe\u0301.txt": "the other form",
        "cafe\u0301.json": '{"artist": "Other form"}',
        "both.lrc": "\n",  # hides nothing
        "Both.txt": "not exact",
        "both.txt": "exact",
        "caps.json": '{"Artist": "Capital", "YEAR": 1999}',
    }
    for name, text in beside.items():
        (source / name).write_text(text)
    songs = {song.name: song for song in find_songs(source)}
    assert {name: (song.lyrics, song.metadata) for name, song in songs.items()} == {
        "upper.wav": ("[00:00.50]upper case", {}),
        "upper3.WAV": (None, {"artist": "Upper"}),
        "full.wav": ("[00:00.50]full name", {"artist": "Full"}),
        "caf\u00e9.wav": ("the other form", {"artist": "Other form"}),
        "both.wav": ("exact", {}),
        "caps.wav": (None, {"artist": "Capital", "year": 1999}),
    }
    assert songs["upper.wav"].lyrics_kind == "lrc" and songs["both.wav"].lyrics_kind == "txt"
    kinds = [note.kind for note in songs["both.wav"].notes]
    assert kinds == [NoteKind.empty_sidecar, NoteKind.unused_sidecar]
    assert not find_collection(source).notes


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8"]
)
def test_texts_of_every_unicode_encoding_are_read_and_told(tmp_path, encoding):
    put_song(tmp_path / "a.wav")
    text = "[00:00.50]wörd 日本\n"
    (tmp_path / "a.lrc").write_bytes(text.encode(encoding))
    (song,) = find_songs(tmp_path)
    assert song.lyrics == text
    told = [note.kind for note in song.notes]
    assert told == ([] if "8" in encoding else [NoteKind.text_encoding])


@pytest.mark.parametrize("data", [b"caf\xe9", "日本語の歌詞".encode("shift_jis"), b"a\0b\0\0\xd8c"])
def test_texts_in_other_encodings_cost_themselves(tmp_path, data):
    put_song(tmp_path / "a.wav")
    (tmp_path / "a.txt").write_bytes(data)
    (song,) = find_songs(tmp_path)
    assert song.lyrics is None and song.refusal is None
    assert song.notes[0].kind is NoteKind.bad_sidecar and "save it as UTF-8" in song.notes[0].detail


def test_what_of_the_lyrics_is_not_sung_as_written_is_noted(tmp_path):
    source = tmp_path / "songs"
    put_song(source / "a.wav", seconds=2.0)
    rows = ["[offset:-500]", "[00:00.50]in", "[0,1000]no time", "[00:03.00]too late", "[00:09.00]"]
    (source / "a.lrc").write_text("\n".join(rows + ["[1,1]x"] * 9))
    (source / "b.wav").symlink_to("a.wav")
    prepare(source, tmp_path / "out")
    notes = [(note.source, note.kind.value, note.detail) for note in read_notes(tmp_path / "out")]
    assert [kind for _, kind, _ in notes] == [
        "lyrics_offset",
        *["unreadable_lyrics_time"] * 4,
        "lyrics_outside_song",
    ]
    details = "\n".join(detail for _, _, detail in notes)
    assert "lyrics line 3: [0,1000] is no time; write [mm:ss.xx]" in details
    assert "the same at 7 more places" in details
    assert "2 of 3 timed words start behind the end at 2.00 s, the last at 4.50 s" in details


def test_lyrics_of_the_file_itself_are_stored_where_there_are_none_beside_it(tmp_path):
    source = tmp_path / "songs"
    for name, beside in (("a", None), ("b", "beside"), ("c", " ")):
        wav = put_song(source / f"{name}.wav").read_bytes()
        lyrics = b"\x03eng\0" + b"[00:00.50]within"
        tag = b"USLT" + len(lyrics).to_bytes(4, "big") + b"\0\0" + lyrics
        tag = b"ID3\x03\0\0" + bytes([0, 0, 0, len(tag)]) + tag
        data = wav + b"id3 " + len(tag).to_bytes(4, "little") + tag
        (source / f"{name}.wav").write_bytes(
            data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:]
        )
        if beside:
            (source / f"{name}.txt").write_text(beside)
    shards = prepare(source, tmp_path / "out")
    stored = [shards.read_member(row, "lyrics") for row in range(3)]
    assert stored == [b"[00:00.50]within", b"beside", b"[00:00.50]within"]
    assert [shards.member_extension(row, "lyrics") for row in range(3)] == ["lrc", "txt", "lrc"]
    bare = prepare(source, tmp_path / "bare", tags=False)
    assert not bare.has(0, "lyrics")


def test_strict_makes_notes_refusals_but_for_kinds_that_are_allowed(tmp_path):
    source = collection(tmp_path / "songs")
    assert len(prepare(source, tmp_path / "strict", strict=True)) == 1
    lines = (tmp_path / "strict" / "refused.jsonl").read_text().splitlines()
    refused = {(line["song"], line["reason"]) for line in map(json.loads, lines)}
    assert refused == PASSED_OVER | {("song.wav", "unknown_field")}
    assert read_notes(tmp_path / "strict") == []
    allowed = [kind for kind in NoteKind if kind is not NoteKind.other_format]
    out = tmp_path / "allowed"
    assert len(prepare(source, out, strict=True, allow=allowed)) == 2
    (line,) = (out / "refused.jsonl").read_text().splitlines()
    assert json.loads(line)["song"] == "loved.mid"


def test_strictness_belongs_to_the_plan_and_kinds_that_are_none_are_refused(tmp_path):
    source = collection(tmp_path / "songs")
    prepare(source, tmp_path / "out")
    with pytest.raises(UserError, match="strict was False and is now True"):
        prepare(source, tmp_path / "out", strict=True)
    with pytest.raises(UserError, match="allow is hidden without strict; give --strict too"):
        prepare(source, tmp_path / "other", allow=[NoteKind.hidden])


def test_a_set_of_before_there_were_notes_is_resumed(tmp_path):
    source = collection(tmp_path / "songs")
    prepare(source, tmp_path / "out")
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    del plan["settings"]["strict"], plan["settings"]["allow"]
    (tmp_path / "out" / "plan.json").write_text(json.dumps(plan))
    (rows,) = (tmp_path / "out").glob("*.rows.json")
    shard = json.loads(rows.read_text())
    del shard["notes"]["noted"]
    rows.write_text(json.dumps(shard))
    assert len(prepare(source, tmp_path / "out")) == 2


def test_links_to_folders_are_searched_once_where_links_are_followed(tmp_path):
    source = collection(tmp_path / "songs")
    (source / "far" / "back").symlink_to(source)
    put_song(tmp_path / "elsewhere" / "new.wav")
    (source / "out").symlink_to(tmp_path / "elsewhere")
    found = find_collection(source, follow_links=True)
    assert [song.name for song in found.songs] == ["far/other.wav", "out/new.wav", "song.wav"]
    links = {note.source for note in found.notes if note.kind is NoteKind.folder_link}
    assert links == {"far/back", "near"}


def test_a_folder_of_other_formats_alone_says_so(tmp_path):
    (tmp_path / "a.mid").write_bytes(b"x")
    with pytest.raises(UserError, match=r"holds no audio files .* \(passed over: 1 \.mid\)"):
        find_songs(tmp_path)


def test_sound_with_another_ending_is_named_by_its_first_bytes(tmp_path):
    put_song(tmp_path / "song.wav")
    (tmp_path / "song.wav").rename(tmp_path / "song")
    put_song(tmp_path / "other.wav")
    (note,) = find_collection(tmp_path).notes
    assert note.kind is NoteKind.other_format and "it is WAV by its first bytes" in note.detail


def test_every_kind_of_note_is_described_and_comes_back_from_its_line(tmp_path):
    assert list(NOTE_KINDS) == list(NoteKind)
    lines = [IngestNote("ä\udcff", kind, "what, and the way out").to_record() for kind in NoteKind]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"kind": "of a later version"}])
    (tmp_path / "notes.jsonl").write_text(text)
    assert [note.to_record() for note in read_notes(tmp_path)] == lines
    assert read_notes(tmp_path / "none") == []
