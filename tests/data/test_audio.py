"""megajukebox/data/audio.py: reading without trust, exact round trips, windows into tars."""

import contextlib
import io
import os
import tracemalloc

import numpy as np
import pytest
import soundfile
import soxr
from fixtures.paths import SHARED

from megajukebox.data import audio
from megajukebox.data.recordings import open_recording

RECORDINGS = SHARED / "audio"


def tones(frames: int, channels: int = 2, rate: int = 11_025) -> np.ndarray:
    """[T, C] float32 on the grid of 16 bits, so that 16-bit files hold it exactly."""
    t = np.arange(frames)[:, None] / rate
    x = 0.4 * np.sin(2 * np.pi * t * (220 + 110 * np.arange(channels))) + 0.05 * np.cos(
        2 * np.pi * 1000 * t
    )
    return (np.rint(x * 2**15) / 2**15).astype(np.float32)


def sound(
    x: np.ndarray, rate: int = 11_025, container: str = "WAV", subtype: str | None = None
) -> io.BytesIO:
    file = io.BytesIO()
    soundfile.write(file, x, rate, format=container, subtype=subtype)
    file.seek(0)
    return file


def with_flac_length(data: bytes, frames: int) -> io.BytesIO:
    """A FLAC file whose header claims `frames` (36 bits in bytes 21..25)."""
    bits = int.from_bytes(data[18:26], "big") >> 36 << 36 | frames
    return io.BytesIO(data[:18] + bits.to_bytes(8, "big") + data[26:])


@pytest.mark.parametrize("bits", [16, 24])
@pytest.mark.parametrize("channels", [1, 2])
def test_flac_keeps_16_bit_audio_exactly(bits, channels):
    x = tones(5000, channels)
    np.testing.assert_array_equal(
        audio.read(io.BytesIO(audio.encode_flac(x, 11_025, bits)), 11_025), x
    )


def test_flac_of_24_bits_is_within_half_a_step():
    x = np.random.default_rng(0).uniform(-1, 1, (3000, 2)).astype(np.float32)
    assert (
        np.abs(audio.read(io.BytesIO(audio.encode_flac(x, 44_100, 24)), 44_100) - x).max()
        <= 0.5 / 2**23 + 1e-7
    )


def test_full_scale_is_clipped_and_never_wraps():
    x = np.array([[1.0], [1.5], [-1.0], [-1.5]], np.float32)
    np.testing.assert_array_equal(
        audio.read(io.BytesIO(audio.encode_flac(x, 11_025)), 11_025)[:, 0],
        np.float32([1 - 2**-15, 1 - 2**-15, -1, -1]),
    )


def test_float_wav_loses_nothing():
    x = (np.random.default_rng(0).standard_normal((3000, 2)) * 0.5).astype(np.float32)
    np.testing.assert_array_equal(audio.read(io.BytesIO(audio.encode_wav(x, 11_025)), 11_025), x)


def test_the_same_audio_gives_the_same_bytes():
    assert audio.encode_flac(tones(9000), 44_100) == audio.encode_flac(tones(9000), 44_100)


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_reading_in_blocks_equals_resampling_at_once(rate, monkeypatch):
    monkeypatch.setattr(open_recording, "BLOCK", 777)
    x = tones(20_000, rate=rate)
    np.testing.assert_allclose(
        audio.read(sound(x, rate), 11_025), soxr.resample(x, rate, 11_025, "VHQ"), atol=1e-6
    )


@pytest.mark.parametrize("container", ["OGG", "MP3"])
def test_blocks_of_a_lossy_file_join_without_a_seam(container, monkeypatch):
    file = sound(tones(60_000, rate=44_100), 44_100, container)
    whole, _ = soundfile.read(io.BytesIO(file.getvalue()), dtype="float32", always_2d=True)
    monkeypatch.setattr(open_recording, "BLOCK", 1000)
    np.testing.assert_array_equal(audio.read(file, 44_100), whole)


def test_facts_tell_what_the_header_claims(tmp_path):
    (tmp_path / "song.ogg").write_bytes(sound(tones(5000, 1), container="FLAC").getvalue())
    facts = audio.facts(tmp_path / "song.ogg")
    assert (
        facts == audio.AudioInfo("FLAC", "PCM_16", 11_025, 1, 5000)
        and facts.seconds == 5000 / 11_025
    )


def test_a_container_must_be_what_it_announces():
    with pytest.raises(ValueError, match="unreadable"):
        audio.read(io.BytesIO(b"fLaC" + sound(tones(500)).getvalue()), 11_025)


def test_a_header_that_promises_years_costs_nothing():
    data = audio.encode_flac(tones(5000), 11_025)
    with pytest.raises(ValueError, match="too long"):
        audio.read(with_flac_length(data, 2**36 - 1), 11_025)
    with pytest.raises(ValueError):
        audio.read_slice(with_flac_length(data, 2**36 - 1), 2**35, 1000)


def test_a_header_that_does_not_tell_its_length_is_read_to_the_end():
    unknown = with_flac_length(audio.encode_flac(tones(5000), 11_025), 0)
    assert audio.facts(unknown).frames is None
    np.testing.assert_array_equal(audio.read(unknown, 11_025), tones(5000))


@pytest.mark.parametrize("container", ["FLAC", "MP3"])
def test_a_file_that_ends_early_is_refused(container):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (100_000, 2))
    data = sound(noise, 44_100, container).getvalue()
    with pytest.raises(ValueError, match="unreadable"):
        audio.read(io.BytesIO(data[: len(data) // 3]), 44_100)


def test_too_long_is_refused_while_reading():
    with pytest.raises(ValueError, match=r"too long: it lasts over 0\.25 seconds"):
        audio.read(sound(tones(5000)), 11_025, max_seconds=0.25)


def test_many_channels_may_last_as_long_as_two():
    eight = sound(np.tile(tones(5000, 1), 8))
    assert audio.read(eight, 11_025, max_seconds=1.0).shape == (5000, 2)
    assert audio.read_mono(eight, 11_025, max_seconds=1.0).shape == (5000,)


@pytest.mark.parametrize("rate", [11_025, 8_000])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_mono_by_blocks_is_the_downmix_of_the_whole(rate, channels, monkeypatch):
    file = sound(np.tile(tones(20_000, 1), channels) * np.linspace(0.1, 0.5, channels))
    whole = audio.read(file, rate)
    middle = audio.read_slice(file, 3000, 9000)
    monkeypatch.setattr(audio, "BLOCK", 777)
    monkeypatch.setattr(open_recording, "BLOCK", 777)
    np.testing.assert_array_equal(audio.read(file, 11_025), audio.read_slice(file, 0, 20_000))
    if rate == 11_025:  # a resampler's blocks are rounded by their lengths
        np.testing.assert_array_equal(audio.read_mono(file, rate), audio.downmix(whole))
    np.testing.assert_array_equal(
        audio.read_mono(file, rate), audio.downmix(audio.read(file, rate))
    )
    np.testing.assert_array_equal(
        audio.read_mono_slice(file, 3000, 9000, mix=0.3), audio.downmix(middle, 0.3)
    )


def test_of_a_bomb_of_eight_channels_two_are_held():
    """Half a minute of silence at 192 kHz: 0.1 MB packed, 180 MB as floats. Its header claims an hour, or nothing."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 192_000, 8, "PCM_16", format="FLAC") as flac:
        for _ in range(30):
            flac.write(np.zeros((192_000, 8), np.int16))
    bomb = file.getvalue()
    with pytest.raises(ValueError, match="ends after 5760000 of 691200000 promised frames"):
        audio.read(with_flac_length(bomb, 3600 * 192_000), 192_000)
    tracemalloc.start()
    with pytest.raises(ValueError, match="too long"):
        audio.read(with_flac_length(bomb, 0), 192_000, 20.0)
    assert audio.read_mono(with_flac_length(bomb, 0), 192_000, 60.0).shape == (30 * 192_000,)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 46 MB of left and right, twice while they grow, and blocks
    assert peak < 150e6


def test_a_path_leaves_no_file_open(tmp_path):
    (tmp_path / "good.wav").write_bytes(sound(tones(500)).getvalue())
    (tmp_path / "bad.wav").write_bytes(b"fLaC" + b"x" * 100)
    (tmp_path / "text.wav").write_bytes(b"hello")
    os.mkfifo(tmp_path / "pipe.wav")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("good.wav", "bad.wav", "text.wav", "pipe.wav"):
        with contextlib.suppress(ValueError):
            audio.read(tmp_path / name, 11_025)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "not finite"), (np.inf, "not finite"), (4.5, "too loud")]
)
def test_absurd_samples_are_refused(value, reason):
    x = tones(5000)
    x[4321, 1] = value
    with pytest.raises(ValueError, match=reason):
        audio.read(sound(x, subtype="FLOAT"), 11_025)
    with pytest.raises(ValueError, match=reason):
        audio.read_slice(sound(x, subtype="FLOAT"), 4000, 500)
    np.testing.assert_array_equal(audio.read_slice(sound(x, subtype="FLOAT"), 0, 4000), x[:4000])


def test_more_than_eight_channels_are_refused():
    with pytest.raises(ValueError, match="9 channels"):
        audio.read_slice(sound(tones(100, 9)), 0, 10)


@pytest.mark.parametrize("container", ["WAV", "FLAC"])
def test_slices_are_exact_anywhere(container):
    x, file = tones(30_000), sound(tones(30_000), container=container)
    for start, frames in [(0, 1), (0, 30_000), (4095, 2), (12_345, 6789), (29_999, 1)]:
        np.testing.assert_array_equal(
            audio.read_slice(file, start, frames), x[start : start + frames]
        )


@pytest.mark.parametrize(("start", "frames"), [(4990, 11), (5000, 1), (9999, 5), (-1, 5)])
def test_a_slice_beyond_the_song_is_refused(start, frames):
    with pytest.raises(ValueError):
        audio.read_slice(sound(tones(5000)), start, frames)


def test_a_slice_of_another_sample_rate_is_refused():
    with pytest.raises(ValueError, match="11025 Hz, wanted 44100 Hz"):
        audio.read_slice(sound(tones(5000)), 0, 5, sample_rate=44_100)


def test_a_window_into_a_file_reads_like_a_file_of_its_own(tmp_path):
    data = audio.encode_flac(tones(30_000), 11_025)
    (tmp_path / "tar").write_bytes(b"x" * 1000 + data + b"y" * 1000)
    with open(tmp_path / "tar", "rb") as tar:
        window, other = (audio.OffsetReader(tar, 1000, len(data)) for _ in range(2))
        assert window.read(10) + other.read(7) + window.read() == data[:10] + data[:7] + data[10:]
        assert (
            window.read(5) == b""
            and window.seek(-4, 2) == len(data) - 4
            and window.read(99) == data[-4:]
        )
        np.testing.assert_array_equal(audio.read_slice(window, 9000, 500), tones(30_000)[9000:9500])
        window.close()
        assert not tar.closed
        audio.OffsetReader(tar, 0, 5, owned=True).close()
        assert tar.closed


def test_downmix():
    left, right = np.float32([1, 0.5]), np.float32([0, -0.5])
    stereo = np.stack([left, right], axis=1)
    np.testing.assert_array_equal(audio.downmix(stereo, 1.0), left)
    np.testing.assert_array_equal(audio.downmix(stereo, 0.0), right)
    np.testing.assert_allclose(audio.downmix(stereo, 0.25), 0.25 * left + 0.75 * right)
    np.testing.assert_array_equal(audio.downmix(left[:, None], 0.3), left)
    surround = np.float32([[1, 2, 3, 4, 5, 6]])
    share = np.sqrt(0.5)  # FL FR FC LFE BL BR
    left = 1 + share * (3 + 5)
    right = 2 + share * (3 + 6)
    np.testing.assert_allclose(
        audio.downmix(surround, 0.25), [0.25 * left + 0.75 * right], rtol=1e-6
    )
    assert audio.downmix(surround, 0.25).dtype == np.float32


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_write_wav_leaves_a_whole_file_or_none(bits, tmp_path):
    audio.write_wav(tmp_path / "a.wav", tones(500), 11_025, bits)
    np.testing.assert_array_equal(audio.read(tmp_path / "a.wav", 11_025), tones(500))
    with pytest.raises(ValueError, match="bits 20 is not possible"):
        audio.write_wav(tmp_path / "b.wav", tones(500), 11_025, bits=20)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.skipif(
    not RECORDINGS.is_dir(), reason="the recordings of ../shared/audio are not here"
)
def test_real_recordings_are_read_whole():
    for path in RECORDINGS.glob("*.ogg"):
        facts, x = audio.facts(path), audio.read(path, 11_025)
        assert (
            facts.container == "OGG"
            and abs(len(x) - facts.frames / 4) <= 1
            and np.abs(x).max() > 0.1
        )
