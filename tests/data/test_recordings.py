"""megajukebox/data/recordings: what a file is, how long it is, what its channels mean; whatever its header says."""

import io
import random

import numpy as np
import pytest
import soundfile
from fixtures.fuzzing import mutated
from fixtures.recordings import (
    MASKS,
    SPEAKERS,
    chunk,
    decoded_through_a_pipe,
    flac_with_mask,
    foreign,
    id3v2,
    packed_as,
    shares,
    tones_of,
    vbr_mp3,
    wav,
)
from hypothesis import given
from hypothesis import strategies as st

from megajukebox.data import audio
from megajukebox.data.ingest.convert import IngestConfig, convert
from megajukebox.data.ingest.discover import find_songs
from megajukebox.data.recordings import foreign_audio, open_recording
from megajukebox.data.recordings.channels import (
    FLAC_ORDERS,
    LEFT_RIGHT,
    VORBIS_ORDERS,
    fold,
    fold_matrix,
    speakers_of_mask,
)
from megajukebox.data.recordings.kinds import recognise
from megajukebox.data.recordings.open_recording import opened_recording
from megajukebox.data.recordings.pieces import ByteView, Padding, Span, SplicedFile
from megajukebox.records.ingest_notes import NoteKind

RATE = 8_000
FIVE_ONE = sum(MASKS[name] for name in SPEAKERS)
VORBIS_SPEAKERS = ("FL", "FC", "FR", "BL", "BR", "LFE")
STEREO = tones_of(("FL", "FR"))


def read(data: bytes, rate: int = RATE) -> audio.DecodedRecording:
    return audio.read_recording(io.BytesIO(data), rate)


def kinds_of_notes(recording: audio.DecodedRecording) -> list[str]:
    return [note.kind for note in recording.notes]


# ---- How long a file is


@pytest.mark.parametrize("loud_first", [True, False])
def test_an_mp3_without_a_xing_frame_is_the_sum_of_its_frames(loud_first):
    data = vbr_mp3(loud_first)
    whole = decoded_through_a_pipe(data)
    with soundfile.SoundFile(io.BytesIO(data)) as claimed:
        assert abs(claimed.frames - len(whole)) > 10_000  # what libsndfile estimates is far off
    np.testing.assert_array_equal(read(data, 44_100).samples, whole)
    assert audio.facts(io.BytesIO(data)).frames == len(whole) == len(whole) // 1152 * 1152
    middle = audio.read_slice(io.BytesIO(data), 90_000, 9_000)
    # behind a seek the decoder has lost its history, for some frames
    np.testing.assert_allclose(middle[6_000:], whole[96_000:99_000], atol=1e-4)


def test_a_whole_mp3_is_read_as_before_and_a_cut_one_refused():
    data = packed_as(np.tile(STEREO, (6, 1)), 44_100, "MP3")
    np.testing.assert_array_equal(
        read(data, 44_100).samples, soundfile.read(io.BytesIO(data), dtype="float32")[0]
    )
    with pytest.raises(ValueError, match=r"ends after \d+ of \d+ promised frames"):
        read(data[: len(data) // 2], 44_100)


def test_joined_mp3s_are_taken_whole():
    first = packed_as(tones_of(("FL",), 44_100, 2.0), 44_100, "MP3")
    second = packed_as(tones_of(("FR",), 44_100, 1.0), 44_100, "MP3")
    lengths = [len(read(data, 44_100).samples) for data in (first, second)]
    joined = read(first + b"TAG".ljust(128, b"\0") + id3v2() + second, 44_100)
    assert len(joined.samples) == sum(lengths) and "length" in kinds_of_notes(joined)
    other = packed_as(tones_of(("FR",), 22_050, 1.0), 22_050, "MP3")
    with pytest.raises(ValueError, match="22050 Hz follow those of 44100 Hz"):
        read(first + other, 44_100)


def test_a_xing_frame_that_counts_too_few_frames_costs_none():
    data = packed_as(tones_of(("FL",), 44_100, 2.0), 44_100, "MP3")
    whole = read(data, 44_100).samples
    at = max(data.find(b"Xing"), data.find(b"Info")) + 8
    frames = int.from_bytes(data[at : at + 4], "big")
    lying = data[:at] + (frames // 3).to_bytes(4, "big") + data[at + 4 :]
    np.testing.assert_array_equal(read(lying, 44_100).samples, whole)


@pytest.mark.parametrize("container", ["OGG", "FLAC", "WAV"])
@pytest.mark.parametrize("between", [b"", id3v2(), bytes(1000)], ids=["", "tag", "zeros"])
def test_joined_recordings_are_taken_whole(container, between):
    first, second = STEREO[:10_000], STEREO[:6_000]
    data = packed_as(first, RATE, container) + between + packed_as(second, RATE, container)
    if container == "WAV" and between:
        pytest.skip("what stands between WAVs is a chunk, or not known to belong to a second one")
    recording = read(data)
    assert len(recording.samples) == 16_000
    assert any("2 recordings are joined" in note.detail for note in recording.notes)
    np.testing.assert_allclose(
        recording.samples[10_000:], read(data[-len(packed_as(second, RATE, container)) :]).samples
    )
    other = packed_as(second, 16_000, container)
    with pytest.raises(ValueError, match="different recordings are joined in it"):
        read(packed_as(first, RATE, container) + other)


@pytest.mark.parametrize("promised", [1, 15_999, 16_001, 2**36 - 1])
def test_a_flac_is_as_long_as_its_frames(promised):
    data = packed_as(STEREO, RATE, "FLAC")
    bits = int.from_bytes(data[18:26], "big") >> 36 << 36 | promised
    lying = data[:18] + bits.to_bytes(8, "big") + data[26:]
    if promised > 16_000:
        with pytest.raises(ValueError, match=r"ends after 16000 of|too long"):
            read(lying)
    else:
        recording = read(lying)
        assert len(recording.samples) == 16_000 and kinds_of_notes(recording) == ["length"]


def test_a_cut_wav_is_refused_with_both_numbers():
    data = wav(STEREO)
    with pytest.raises(ValueError, match="ends after 8000 of 16000 promised frames"):
        read(data[: 44 + 4 * 8000])
    with pytest.raises(ValueError, match="ends after 8000 of 16000 promised frames"):
        audio.facts(io.BytesIO(data[: 44 + 4 * 8000]))


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0x80000000])
@pytest.mark.parametrize("mask", [None, 3])
def test_a_wav_that_was_never_closed_is_read_to_its_end(size, mask):
    data = wav(STEREO, mask=mask, data_size=size)
    recording = read(data)
    np.testing.assert_array_equal(recording.samples, read(wav(STEREO)).samples)
    assert kinds_of_notes(recording) == (["length"] if size == 0 else [])
    np.testing.assert_array_equal(
        audio.read_slice(io.BytesIO(data), 9_000, 500), recording.samples[9_000:9_500]
    )


def test_more_sound_behind_a_wavs_end_is_refused_with_both_numbers():
    data = wav(STEREO, data_size=4 * 4000)
    with pytest.raises(ValueError, match="its header says 4000 frames, 12000 more follow"):
        read(data)


@pytest.mark.parametrize(
    "behind",
    [
        chunk(b"LIST", b"INFOIART\x04\0\0\0Band"),
        chunk(b"LIST", bytes(5000))[:4000],  # cut
        bytes(5000),
        id3v2(),
        b"TAG".ljust(128, b"x"),
        b"some editor",
    ],
)
def test_what_is_no_sound_behind_a_wavs_end_costs_nothing(behind):
    recording = read(wav(STEREO, behind=behind))
    assert len(recording.samples) == 16_000
    assert kinds_of_notes(recording) == (["length"] if behind == b"some editor" else [])


def test_a_header_counted_as_sound_is_noted():
    data = wav(STEREO)
    wrong = data[:40] + len(data).to_bytes(4, "little") + data[44:]
    recording = read(wrong)
    assert len(recording.samples) == 16_000
    assert "its header says 16011 frames, there are 16000" in recording.notes[0].detail


@pytest.mark.parametrize("container", ["AIFF", "CAF"])
def test_aiff_and_caf_are_as_long_as_they_say_or_refused(container):
    data = packed_as(STEREO, RATE, container)
    np.testing.assert_allclose(read(data).samples, STEREO, atol=1e-4)
    with pytest.raises(ValueError, match=r"ends after \d+ of 16000 promised frames"):
        read(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"its header says 16000 frames, \d+ more follow"):
        read(data + data[-20_000:])


def test_a_chunk_of_more_bytes_than_any_disk_has_is_refused():
    data = packed_as(STEREO, RATE, "CAF")
    at = data.index(b"data") + 4
    for size in (2**63, 2**64 - 2):
        with pytest.raises(ValueError, match="ends after 16000 of"):
            read(data[:at] + size.to_bytes(8, "big") + data[at + 8 :])
    free = b"free" + (2**63 + 5).to_bytes(8, "big")
    with pytest.raises(ValueError, match="unreadable"):
        read(data[:8] + free + data[8:])


def test_an_aiff_that_was_never_closed_is_read_to_its_end():
    data = bytearray(packed_as(STEREO, RATE, "AIFF", "PCM_16"))
    comm, ssnd = data.index(b"COMM"), data.index(b"SSND")
    data[4:8] = data[comm + 10 : comm + 14] = data[ssnd + 4 : ssnd + 8] = bytes(4)
    recording = read(bytes(data))
    np.testing.assert_allclose(recording.samples, STEREO, atol=1e-4)
    assert kinds_of_notes(recording) == ["length"]


def test_an_ogg_that_was_cut_is_noted():
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (160_000, 2))
    data = packed_as(noise, RATE, "OGG")
    recording = read(data[: len(data) * 3 // 4])
    assert 80_000 < len(recording.samples) < 140_000
    assert "may have been cut" in recording.notes[0].detail
    assert read(data).notes == []


# ---- What a file is

BEFORE = {"tag": id3v2(), "tags": id3v2() + id3v2(20), "zeros": bytes(2000)}


@pytest.mark.parametrize("container", ["FLAC", "WAV", "OGG", "AIFF", "CAF"])
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_what_stands_before_a_recording_is_passed_over(container, before):
    data = packed_as(STEREO, RATE, container)
    recording = read(before + data)
    np.testing.assert_array_equal(recording.samples, read(data).samples)
    assert bool(recording.notes) == (before == bytes(2000))
    np.testing.assert_array_equal(
        audio.read_slice(io.BytesIO(before + data), 3000, 100),
        audio.read_slice(io.BytesIO(data), 3000, 100),
    )


@pytest.mark.parametrize("before", [bytes(2000), b"\x93\x01\xfe\x9a" * 500], ids=["zeros", "junk"])
def test_an_mp3_behind_what_is_none_is_taken(before):
    data = packed_as(tones_of(("FL",), 44_100), 44_100, "MP3")
    recording = read(before + data, 44_100)
    np.testing.assert_array_equal(recording.samples, read(data, 44_100).samples)
    assert "2000 bytes before its start" in recording.notes[0].detail


@pytest.mark.parametrize("magic", [b"RF64", b"BW64"])
def test_wavs_with_long_sizes_are_taken(magic):
    np.testing.assert_array_equal(read(wav(STEREO, magic=magic)).samples, read(wav(STEREO)).samples)
    with pytest.raises(ValueError, match=r"ends after 16000 of 20000"):
        read(wav(STEREO, magic=magic, data_size=80_000))


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_opus_and_vorbis_are_ogg(subtype):
    x = tones_of(("FL", "FR"), 48_000)
    info = audio.facts(io.BytesIO(packed_as(x, 48_000, "OGG", subtype)))
    assert info == audio.AudioInfo("OGG", subtype, 48_000, 2, 96_000)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty: 0 bytes"),
        (bytes(5000), "all its bytes are zero; fetch or copy"),
        (id3v2(), "nothing follows its tags"),
        (b"<!DOCTYPE html><html>", "it is a web page; the download went wrong"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"MThd\0\0\0\x06", "MIDI: notes and no sound; render it"),
        (b"PK\x03\x04....", "a ZIP archive; unpack it"),
        (b"#EXTM3U\nhttp://x/y.mp3\n", "a playlist"),
        (b"Dear all, no song here.", "it is a text"),
        (b"\x93\x01\xfe\x9a" * 9, r"its first bytes \(93 01 fe 9a"),
    ],
)
def test_what_cannot_be_read_says_what_it_is_and_the_way_out(data, reason):
    with pytest.raises(ValueError, match=reason):
        read(data)
    with pytest.raises(ValueError, match=reason):
        audio.facts(io.BytesIO(data))


# ---- What channels mean

LEFT = {"FL": 1, "FR": 0, "FC": 0.707, "LFE": 0, "BL": 0.707, "BR": 0}
RIGHT = {"FL": 0, "FR": 1, "FC": 0.707, "LFE": 0, "BL": 0, "BR": 0.707}


def five_one(container: str) -> bytes:
    """5.1 in this container, in its order of channels."""
    rate = 48_000 if container in ("OGG", "OPUS") else RATE
    if container == "WAV":
        return wav(tones_of(SPEAKERS), mask=FIVE_ONE)
    if container == "WAV without a mask":
        return wav(tones_of(SPEAKERS))
    if container in ("OGG", "OPUS"):
        x = tones_of(VORBIS_SPEAKERS, rate)
        return packed_as(x, rate, "OGG", "OPUS" if container == "OPUS" else None)
    return packed_as(tones_of(SPEAKERS), rate, container)


@pytest.mark.parametrize("container", ["WAV", "WAV without a mask", "OGG", "OPUS", "FLAC", "CAF"])
def test_five_one_is_folded_by_what_its_channels_mean(container):
    data = five_one(container)
    rate = audio.facts(io.BytesIO(data)).sample_rate
    recording = read(data, rate)
    assert kinds_of_notes(recording) == ["folded"]
    assert "folded into left and right (ITU-R BS.775, without LFE)" in recording.notes[0].detail
    slices = audio.read_slice(io.BytesIO(data), 0, 2 * rate)
    for x in (recording.samples, slices):
        for side, wanted in enumerate((LEFT, RIGHT)):
            assert shares(x[: 2 * rate, side], rate) == pytest.approx(wanted, abs=0.03)
        mono = shares(audio.downmix(x[: 2 * rate], 0.5), rate)
        assert mono["FC"] == pytest.approx(0.707, abs=0.03) and mono["LFE"] < 0.02


def test_a_named_order_counts_more_than_that_of_the_format():
    sides = MASKS["FL"] | MASKS["FR"] | MASKS["BC"]  # three, and none is the centre in front
    for data in (
        wav(tones_of(("FL", "FR", "BL")), mask=sides),
        flac_with_mask(tones_of(("FL", "FR", "BL")), RATE, sides),
    ):
        for x in (read(data).samples, audio.read_slice(io.BytesIO(data), 0, 16_000)):
            assert shares(x[:, 0], RATE)["BL"] == pytest.approx(0.5, abs=0.02)
            assert shares(x[:, 1], RATE)["BL"] == pytest.approx(0.5, abs=0.02)


def test_what_would_clip_is_scaled_by_one_factor():
    loud = np.tile(0.9 * np.sin(2 * np.pi * 300 * np.arange(16_000) / RATE)[:, None], 6)
    quiet = read(wav(loud / 10, mask=FIVE_ONE)).samples
    recording = read(wav(loud, mask=FIVE_ONE))
    assert np.abs(recording.samples).max() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(recording.samples, quiet / np.abs(quiet).max(), atol=2e-3)
    assert "scaled by 0.46" in recording.notes[0].detail
    mono = audio.read_mono(io.BytesIO(wav(loud, mask=FIVE_ONE)), RATE)
    np.testing.assert_allclose(mono, audio.downmix(recording.samples), atol=1e-6)


def test_a_low_frequency_channel_beside_one_other_leaves_mono():
    x = tones_of(("FC", "LFE"))
    recording = read(wav(x, mask=MASKS["FC"] | MASKS["LFE"]))
    assert recording.samples.shape == (16_000, 1)
    np.testing.assert_allclose(recording.samples[:, 0], x[:, 0], atol=1e-4)


@pytest.mark.parametrize("speakers", [("FL", "FR"), ("BL", "BR"), ("SL", "SR"), ("FC",)])
def test_one_and_two_channels_stay_what_they_are(speakers):
    mask = sum(MASKS[name] for name in speakers)
    x = STEREO[:, : len(speakers)]
    recording = read(wav(x, mask=mask))
    assert recording.notes == []
    np.testing.assert_array_equal(recording.samples, read(wav(x)).samples)


@given(st.sampled_from([*FLAC_ORDERS.values(), *VORBIS_ORDERS.values()]), st.randoms())
def test_folding_keeps_sides_apart_and_the_middle_equal(speakers, dice):
    shuffled = list(speakers)
    dice.shuffle(shuffled)
    x = np.eye(len(shuffled), dtype=np.float32)
    folded = fold(x, fold_matrix(tuple(shuffled)))
    for name, heard in zip(shuffled, folded):
        if folded.shape[1] == 1:
            assert heard[0] == 1
        elif name == "LFE":
            assert not heard.any()
        elif name in ("FC", "BC"):
            assert heard[0] == heard[1] > 0
        else:
            assert (heard > 0).tolist() == [name.endswith("L"), name.endswith("R")]


@given(st.integers(0, 2**18 - 1), st.integers(1, 8))
def test_a_mask_names_as_many_speakers_as_there_are_channels_or_none(mask, channels):
    speakers = speakers_of_mask(mask, channels)
    assert (speakers is None) == (mask.bit_count() < channels)
    if speakers is not None:
        assert len(set(speakers)) == channels and set(speakers) <= set(LEFT_RIGHT)
        fold_matrix(speakers)


# ---- A collection


def test_of_a_folder_every_recording_is_taken_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign_audio.importlib.util, "find_spec", lambda name: None)
    for number, name in enumerate(("a.wav", "b.WAVE", "c.oga", "d.opus", "e.aiff", "f.caf")):
        kind = {"a": "WAV", "b": "WAV", "e": "AIFF", "f": "CAF"}.get(name[0], "OGG")
        subtype = "OPUS" if name[0] == "d" else None
        x = tones_of(("FL",)) * (0.5 + 0.05 * number)
        (tmp_path / name).write_bytes(packed_as(x, RATE, kind, subtype))
    (tmp_path / "g.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    (tmp_path / "h.wma").write_bytes(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(100))
    settings = IngestConfig(sample_rate=RATE)
    converted = {song.name: convert(song, settings) for song in find_songs(tmp_path)}
    assert [converted[name].refusal for name in sorted(converted)[:6]] == [None] * 6
    assert [song.frames for song in converted.values()][:3] == [16_000] * 3
    for name, kind in (("g.m4a", "MP4"), ("h.wma", "Windows Media")):
        assert converted[name].refusal.startswith(f"unreadable: {kind}")
        assert "convert it to FLAC" in converted[name].refusal
    assert converted["a.wav"].notes == ()


def test_what_conversion_changes_is_noted(tmp_path):
    loud = packed_as(1.2 * tones_of(("FL",)) / 0.3, RATE, "WAV", "FLOAT")
    (tmp_path / "loud.wav").write_bytes(loud)
    (song,) = find_songs(tmp_path)
    resampled, clipped = convert(song, IngestConfig(sample_rate=11_025)).notes
    assert resampled.kind is NoteKind.resampled and resampled.detail == "from 8000 to 11025 Hz"
    assert clipped.kind is NoteKind.clipped and clipped.source == "loud.wav"
    assert "samples were beyond full scale, at most 1.2" in clipped.detail
    assert convert(song, IngestConfig(sample_rate=RATE, codec="wav")).notes == ()


# ---- Formats of the extra

MORE_FOREIGN = [
    ("asf", "wmav2", "Windows Media"),
    ("ipod", "alac", "MP4"),
    ("adts", "aac", "AAC"),
    ("matroska", "flac", "Matroska"),
    ("wv", "wavpack", "WavPack"),
    ("tta", "tta", "True Audio"),
    ("au", "pcm_s16be", "AU"),
    ("w64", "pcm_s16le", "Wave64"),
]
FOREIGN = [
    ("ipod", "aac", "MP4"),
    ("webm", "libopus", "Matroska"),
    ("ogg", "flac", "FLAC in Ogg"),
    *(pytest.param(*row, marks=pytest.mark.slow) for row in MORE_FOREIGN),
]


@pytest.mark.parametrize(("container", "codec", "name"), FOREIGN)
def test_what_ffmpeg_reads_is_taken(container, codec, name):
    pytest.importorskip("av")
    rate = 48_000
    x = tones_of(("FL", "FR"), rate, 1.0)
    with opened_recording(io.BytesIO(foreign(x, rate, container, codec))) as recording:
        assert recording.info.container.startswith(name)
        samples = np.concatenate(list(recording.decode))
    assert abs(len(samples) - len(x)) < 0.1 * rate
    middle = samples[rate // 10 : rate * 6 // 10]  # an encoder fades in and out
    for side, tone in enumerate(("FL", "FR")):
        assert shares(middle[:, side], rate)[tone] == pytest.approx(1, abs=0.05)


def test_without_the_extra_the_way_out_is_told(monkeypatch):
    monkeypatch.setattr(foreign_audio.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"MP4.*megajukebox\[formats\].*convert it to FLAC"):
        read(b"\0\0\0\x20ftypM4A " + bytes(100))


def test_surround_in_an_m4a_is_folded_and_a_cut_one_refused(tmp_path):
    pytest.importorskip("av")
    rate = 48_000
    data = foreign(tones_of(SPEAKERS, rate), rate, "matroska", "pcm_s16le")
    x = read(data, rate).samples
    assert shares(x[: 2 * rate, 0], rate) == pytest.approx(LEFT, abs=0.03)
    path = tmp_path / "song.wv"
    path.write_bytes(foreign(STEREO, RATE, "wv", "wavpack"))
    np.testing.assert_allclose(audio.read(path, RATE), STEREO, atol=1e-4)
    np.testing.assert_allclose(
        audio.read_slice(io.BytesIO(path.read_bytes()), 100, 50), STEREO[100:150], atol=1e-4
    )
    cut = path.read_bytes()[: path.stat().st_size // 3]
    with pytest.raises(ValueError, match="unreadable"):
        read(cut)


def test_a_decoder_that_dies_costs_the_file_alone(monkeypatch):
    pytest.importorskip("av")
    data = foreign(STEREO, RATE, "au", "pcm_s16be")
    monkeypatch.setattr(
        foreign_audio, "module_command", lambda *_: ["/bin/sh", "-c", "kill -SEGV $$"]
    )
    with pytest.raises(ValueError, match=r"its decoder died \(-11.*convert it to FLAC"):
        read(data)


# ---- Bytes put together anew


@given(st.data())
def test_pieces_read_as_one_file(data):
    whole = bytes(range(256)) * 2
    pieces = []
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.integers(0, 500))
        stop = data.draw(st.integers(start, 512))
        pieces.append(
            data.draw(
                st.sampled_from([Span(start, stop), whole[start:stop], Padding(b"abc", start)])
            )
        )
    joined = b""
    for piece in pieces:
        if isinstance(piece, Span):
            joined += whole[piece.start : piece.stop]
        elif isinstance(piece, Padding):
            joined += (piece.pattern * piece.size)[: piece.size]
        else:
            joined += piece
    file = SplicedFile(io.BytesIO(whole), pieces)
    assert file.read() == joined
    for _ in range(5):
        at = data.draw(st.integers(0, len(joined) + 3))
        count = data.draw(st.integers(0, 300))
        file.seek(at)
        assert file.read(count) == joined[at : at + count]


@given(st.binary(max_size=300))
def test_any_bytes_are_recognised_or_refused(data):
    try:
        recognised = recognise(ByteView(io.BytesIO(data)))
    except ValueError as error:
        assert "unreadable" in str(error) or "empty" in str(error)
    else:
        assert 0 <= recognised.start <= len(data)


@pytest.mark.slow
@pytest.mark.parametrize("codec", [("ipod", "aac"), ("webm", "libopus"), ("wv", "wavpack")])
def test_mutated_files_of_the_extra_are_read_or_refused(codec):
    pytest.importorskip("av")
    data = foreign(tones_of(("FL", "FR"), 48_000, 0.5), 48_000, *codec)
    dice = random.Random(0)
    for _ in range(40):
        try:
            recording = read(mutated(data, dice), 48_000)
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            assert np.isfinite(recording.samples).all()


def test_a_fold_that_clips_by_blocks_is_scaled_like_the_whole(monkeypatch):
    loud = np.tile(np.linspace(-0.9, 0.9, 16_000)[:, None], 6)
    whole = read(wav(loud, mask=FIVE_ONE)).samples
    monkeypatch.setattr(open_recording, "BLOCK", 777)
    np.testing.assert_array_equal(read(wav(loud, mask=FIVE_ONE)).samples, whole)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(whole, fold(loud, fold_matrix(SPEAKERS)), atol=0.1)
