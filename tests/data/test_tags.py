"""Tags of audio files: every container, every encoding, every kind of list; what does not decode is no name."""

import struct
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from megajukebox.conditioning.lrc import parse_lrc
from megajukebox.data.ingest.id3 import GENRES, genre_names, read_id3
from megajukebox.data.ingest.tags import SongTags, song_tags
from megajukebox.records.ingest_notes import NoteKind

RATE = 8_000
ENCODING_NAMES = ("latin-1", "utf-16", "utf-16-be", "utf-8")


def sound(path: Path, **options: str) -> bytes:
    """A short sound of the container that the path's ending names."""
    rate = 48_000 if options.get("subtype") == "OPUS" else RATE
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, RATE // 4)
    soundfile.write(path, noise, rate, **options)
    return path.read_bytes()


def tags_of(path: Path, data: bytes) -> SongTags:
    path.write_bytes(data)
    with path.open("rb") as file:
        return song_tags(file, path.name)


# ---- building tags


def synchsafe(number: int) -> bytes:
    return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))


def frame(name: str, body: bytes, version: int) -> bytes:
    if version == 2:
        return name.encode() + len(body).to_bytes(3, "big") + body
    size = synchsafe(len(body)) if version == 4 else len(body).to_bytes(4, "big")
    return name.encode() + size + b"\0\0" + body


def text_frame(name: str, text: str, version: int = 4, encoding: int = 3) -> bytes:
    return frame(name, bytes([encoding]) + text.encode(ENCODING_NAMES[encoding]), version)


def id3(*frames: bytes, version: int = 4, flags: int = 0) -> bytes:
    body = b"".join(frames) + bytes(32)
    return b"ID3" + bytes([version, 0, flags]) + synchsafe(len(body)) + body


def info(**fields: bytes) -> bytes:
    """A RIFF LIST chunk of INFO."""
    body = b"INFO"
    for name, value in fields.items():
        padded = value + bytes(1 + (len(value) + 1) % 2)
        body += name.encode() + struct.pack("<I", len(value) + 1) + padded
    return b"LIST" + struct.pack("<I", len(body)) + body


def with_chunks(wav: bytes, *chunks: bytes) -> bytes:
    data = wav + b"".join(chunks)
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def flac_with_comments(flac: bytes, *comments: str) -> bytes:
    """A FLAC whose Vorbis comments follow its STREAMINFO."""
    body = struct.pack("<I", 0) + struct.pack("<I", len(comments))
    for comment in comments:
        body += struct.pack("<I", len(comment.encode())) + comment.encode()
    stream_info = b"\0" + flac[5:42]
    return b"fLaC" + stream_info + b"\x84" + len(body).to_bytes(3, "big") + body + flac_frames(flac)


def flac_frames(flac: bytes) -> bytes:
    position, last = 4, False
    while not last:
        last = bool(flac[position] & 0x80)
        position += 4 + int.from_bytes(flac[position + 1 : position + 4], "big")
    return flac[position:]


# ---- ID3


@pytest.mark.parametrize("version", [2, 3, 4])
@pytest.mark.parametrize("encoding", [0, 1, 2, 3])
def test_texts_of_id3_are_read_in_every_version_and_encoding(tmp_path, version, encoding):
    names = ("TP1", "TT2", "TCO", "TYE") if version == 2 else ("TPE1", "TIT2", "TCON", "TYER")
    values = ("Zoë Ågren", "Niño", "(4)Eurodisco", "1999")
    frames = [text_frame(n, v, version, encoding) for n, v in zip(names, values)]
    found = tags_of(tmp_path / "a.mp3", id3(*frames, version=version) + sound(tmp_path / "b.mp3"))
    assert found.metadata == {
        "artist": "Zoë Ågren",
        "title": "Niño",
        "genres": ["Eurodisco"],
        "year": 1999,
    }
    assert found.notes == ()


def test_of_several_artists_the_first_and_of_genres_all_are_taken(tmp_path):
    frames = (text_frame("TPE1", "First\0Second"), text_frame("TCON", "Rock\0Pop\x0017"))
    found = tags_of(tmp_path / "a.mp3", id3(*frames))
    assert found.metadata == {"artist": "First", "genres": ["Rock", "Pop"]}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("(17)Rock", ["Rock"]),
        ("(17)", ["Rock"]),
        ("17", ["Rock"]),
        ("(4)Eurodisco", ["Eurodisco"]),
        ("(51)(39)", ["Techno-Industrial", "Noise"]),
        ("((I can figure", ["(I can figure"]),
        ("(RX)", ["Remix"]),
        ("(255)", []),
        ("191", ["Psybient"]),
        ("Rock (live)", ["Rock (live)"]),
        ("", []),
    ],
)
def test_numbers_of_genres_are_names(text, names):
    assert genre_names(text) == names and len(GENRES) == 192


def test_unsynchronised_and_damaged_frames_end_nothing(tmp_path):
    text = "ÿþ" * 3  # bytes FF FE, which unsynchronisation guards
    frames = text_frame("TIT2", text, 3, 0).replace(b"\xff", b"\xff\0")
    frames = frames[:4] + struct.pack(">I", 7) + frames[8:]  # the size is of what was guarded
    found = tags_of(tmp_path / "a.mp3", id3(frames, version=3, flags=0x80))
    assert found.metadata == {"title": text}
    cut = id3(text_frame("TIT2", "T"), text_frame("TPE1", "A" * 50))[:-70]
    assert tags_of(tmp_path / "b.mp3", cut).metadata == {"title": "T"}


def test_a_large_picture_before_the_names_is_passed(tmp_path):
    for version in (3, 4):
        picture = frame("APIC", bytes(range(256)) * 300, version)
        data = id3(picture, text_frame("TPE1", "A", version), version=version)
        assert tags_of(tmp_path / "a.mp3", data).metadata == {"artist": "A"}


def test_id3v1_fills_what_nothing_else_says(tmp_path):
    old = b"TAG" + b"Title".ljust(30, b"\0") + b"Art\xe9".ljust(30) + bytes(30) + b"1987"
    data = sound(tmp_path / "b.mp3") + old + bytes(30) + bytes([17])
    assert tags_of(tmp_path / "a.mp3", data).metadata == {
        "artist": "Arté",
        "title": "Title",
        "genres": ["Rock"],
        "year": 1987,
    }
    newer = tags_of(tmp_path / "a.mp3", id3(text_frame("TPE1", "New")) + data)
    assert newer.metadata["artist"] == "New" and newer.metadata["title"] == "Title"


# ---- lyrics


@pytest.mark.parametrize("encoding", [0, 1, 2, 3])
def test_lyrics_of_uslt_and_sylt_are_read_those_with_times_first(tmp_path, encoding):
    name = ENCODING_NAMES[encoding]
    zero = b"\0\0" if encoding in (1, 2) else b"\0"
    plain = bytes([encoding]) + b"eng" + "dé".encode(name) + zero + "häl\nlo".encode(name)
    (found,) = [tags_of(tmp_path / "a.mp3", id3(frame("USLT", plain, 4)))]
    assert (found.lyrics, found.lyrics_kind) == ("häl\nlo", "txt")
    synced = bytes([encoding]) + b"eng" + bytes([2, 1]) + zero
    for word, time in (("first ", 1000), ("wörd", 1500), ("\nsecond", 2500)):
        synced += word.encode(name) + zero + struct.pack(">I", time)
    found = tags_of(tmp_path / "a.mp3", id3(frame("USLT", plain, 4), frame("SYLT", synced, 4)))
    text, words = parse_lrc(found.lyrics)
    assert (text, found.lyrics_kind) == ("first wörd\nsecond", "lrc")
    assert [word.t0 for word in words] == [1.0, 1.5, 2.5]


@pytest.mark.parametrize(
    ("name", "options", "comment"),
    [
        ("a.flac", {}, "LYRICS"),
        ("a.flac", {}, "UNSYNCEDLYRICS"),
    ],
)
def test_lyrics_and_lists_of_vorbis_comments(tmp_path, name, options, comment):
    flac = sound(tmp_path / "b.flac", **options)
    comments = ("ARTIST=Sigur Rós", "artist=Guest", "GENRE=Post-Rock", "GENRE=Ambient")
    data = flac_with_comments(flac, *comments, f"{comment}=la\nla", "LICENSE=CC0", "DATE=2001-05")
    expected = {
        "artist": "Sigur Rós",
        "genres": ["Post-Rock", "Ambient"],
        "year": 2001,
        "licence": "CC0",
    }
    for behind in (b"", id3(text_frame("TALB", "Album"))):
        found = tags_of(tmp_path / name, behind + data)
        album = {"album": "Album"} if behind else {}
        assert found.metadata == expected | album and found.lyrics == "la\nla"


def test_opus_in_ogg_keeps_its_first_artist(tmp_path):
    path = tmp_path / "a.ogg"
    sound(path, format="OGG", subtype="OPUS")
    data = path.read_bytes()
    start = data.index(b"OpusTags")
    page = data.rindex(b"OggS", 0, start)
    end = data.index(b"OggS", start)
    comments = [b"ARTIST=Sigur R\xc3\xb3s", b"ARTIST=Guest", b"GENRE=A", b"GENRE=B"]
    body = b"OpusTags" + struct.pack("<II", 0, len(comments))
    for comment in comments:
        body += struct.pack("<I", len(comment)) + comment
    head = data[page : page + 26] + bytes([1, len(body)])
    found = tags_of(path, data[:page] + head + body + data[end:])
    assert found.metadata == {"artist": "Sigur Rós", "genres": ["A", "B"]}


# ---- RIFF and AIFF


@pytest.mark.parametrize(
    ("fields", "metadata", "kinds"),
    [
        (
            {
                "IART": "Zoë Ågren".encode("latin-1"),
                "INAM": "Niño".encode("latin-1"),
                "IGNR": b"17",
            },
            {"artist": "Zoë Ågren", "title": "Niño", "genres": ["Rock"]},
            [NoteKind.text_encoding],
        ),
        ({"IART": "Zoë".encode()}, {"artist": "Zoë"}, []),
        ({"IART": "宇多田".encode("shift_jis"), "INAM": b"T"}, {"title": "T"}, None),
        ({"IART": b"A\x01\x02B", "INAM": b"T"}, {"title": "T"}, [NoteKind.bad_tag]),
        ({"IART": b"A\tB"}, {"artist": "A B"}, []),
        ({"IART": "A\ufffd".encode()}, {}, [NoteKind.bad_tag]),
    ],
)
def test_info_of_a_wav_is_decoded_by_its_standard_or_left_out(tmp_path, fields, metadata, kinds):
    wav = sound(tmp_path / "b.wav")
    found = tags_of(tmp_path / "a.wav", with_chunks(wav, info(**fields)))
    assert found.metadata == metadata
    assert kinds is None or [note.kind for note in found.notes] == kinds
    names = [value for value in metadata.values() if isinstance(value, str)]
    assert not any(ord(c) < 32 or c == "\ufffd" for name in names for c in name)


def test_a_code_page_that_a_wav_names_is_used(tmp_path):
    wav = sound(tmp_path / "b.wav")
    page = b"CSET" + struct.pack("<IHHHH", 8, 932, 0, 0, 0)
    found = tags_of(tmp_path / "a.wav", with_chunks(wav, info(IART="宇多田".encode("cp932")), page))
    assert found == SongTags({"artist": "宇多田"})


def test_id3_chunks_of_wav_and_aiff_are_read(tmp_path):
    tag = id3(text_frame("TPE1", "Ä"))
    wav = with_chunks(
        sound(tmp_path / "b.wav"), info(IART=b"older"), b"id3 " + struct.pack("<I", len(tag)) + tag
    )
    assert tags_of(tmp_path / "a.wav", wav).metadata == {"artist": "Ä"}
    aiff = sound(tmp_path / "b.aiff") + b"ID3 " + struct.pack(">I", len(tag)) + tag
    assert tags_of(tmp_path / "a.aiff", aiff).metadata == {"artist": "Ä"}


# ---- anything


@given(
    st.binary(max_size=300),
    st.sampled_from([b"ID3\x04\0\0\0\0\x02\0", b"RIFF\0\0\0\0WAVE", b"OggS\0", b"fLaC", b""]),
)
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_read_as_tags_without_an_error(tmp_path_factory, data, start):
    path = tmp_path_factory.getbasetemp() / "any"
    found = tags_of(path, start + data)
    names = [value for value in found.metadata.values() if isinstance(value, str)]
    letters = "".join(names)
    assert not any(c == "\ufffd" or unicodedata.category(c) in ("Cc", "Cs") for c in letters)


def test_frames_of_an_id3_that_lies_about_its_size_end_with_the_file():
    assert read_id3(b"ID3\x03\0\0\x7f\x7f\x7f\x7fTIT2\0\0\0\x04\0\0\0ab").texts in (
        {},
        {"title": ["ab"]},
    )
