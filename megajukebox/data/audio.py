"""All that is known about codecs: reading, resampling, encoding, mixing. The only file that imports
soundfile and soxr.

Audio is float32 [T, C]: T frames (one sample of every channel), C channels, full scale -1..1.
No header is trusted: files are read in blocks under a cap, and every slice is measured before it is
handed on.
"""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from megajukebox.common.errors import BadSampleError, UserError
from megajukebox.common.files import FileWindow, write_atomic
from megajukebox.common.untrusted_files import UnsafeFileError, open_given

CONTAINERS = ("WAV", "FLAC", "OGG", "MP3")
LIBSNDFILE_NAMES = {
    "WAV": "WAV",
    "WAVEX": "WAV",
    "RF64": "WAV",
    "FLAC": "FLAC",
    "OGG": "OGG",
    "MP3": "MP3",
}
MAX_CHANNELS = 8
# Float files may overshoot full scale a little; beyond this it is not music but a broken file.
MAX_AMPLITUDE = 4.0
SAMPLE_RATES = (4_000, 192_000)
WANTED_RATES = (100, 192_000)  # a small model may be of 1 kHz
MAX_SECONDS = 3600.0
# Channels that a song of the full length may have; one with more may be shorter by as much. All of them are held at once.
FULL_LENGTH_CHANNELS = 2
HEAD = 12  # bytes that tell a container
BLOCK = 1 << 18  # frames read at a time, 6 s at 44.1 kHz
UNKNOWN_LENGTH = 1 << 62  # libsndfile's frame count where the header has none

Source = str | Path | BinaryIO


@dataclass(frozen=True)
class AudioInfo:
    """What the header of an audio file claims."""

    container: str  # one of CONTAINERS
    subtype: str  # e.g. "PCM_16", "VORBIS"
    sample_rate: int  # Hz
    channels: int
    frames: int | None  # None: the header has no length

    @property
    def seconds(self) -> float | None:
        return None if self.frames is None else self.frames / self.sample_rate


class ForwardReader(soundfile.SoundFile):
    """A sound file read from its start to its end without ever seeking.

    soundfile seeks to where it already is after each read; in an MP3 that seek loses the decoder's
    history and the blocks no longer join (errors of 1e-2 at the seams). In a file with a lying
    header the seek fails.
    """

    def seekable(self) -> bool:
        return False


class OffsetReader(FileWindow):
    """A window of an open file. Threads may share `file`."""

    def __init__(self, file: BinaryIO, offset: int, size: int, owned: bool = False):
        """With `owned`, closing this window closes `file` too."""
        super().__init__(offset, size)
        self.file = file
        self.owned = owned

    def fill(self, buffer: memoryview) -> int:
        # pread keeps no position in the shared file, so windows into one shard never disturb each
        # other
        return os.preadv(self.file.fileno(), [buffer], self.offset + self.position)

    def close(self) -> None:
        if self.owned and not self.closed:
            self.file.close()
        super().close()


def facts(source: Source) -> AudioInfo:
    """What the header claims.

    Raises BadSampleError for a container outside CONTAINERS or for numbers no song has.
    """
    with opened(source) as file:
        frames = None if file.frames >= UNKNOWN_LENGTH else file.frames
        return AudioInfo(
            LIBSNDFILE_NAMES[file.format], file.subtype, file.samplerate, file.channels, frames
        )


def tags(source: Source) -> dict[str, str]:
    """The file's own tags under libsndfile's names: title, artist, album, genre, date, license,
    and more.
    """
    with opened(source) as file:
        return file.copy_metadata()


def read(source: Source, sample_rate: int, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """The whole file as [T, C] at `sample_rate` (Hz), resampled by soxr at its very high quality.

    Read block by block, so a header that promises years of audio costs nothing.

    Raises:
        BadSampleError: it cannot be decoded, ends early, holds NaN, infinity or amplitudes beyond MAX_AMPLITUDE, or
            lasts over `max_seconds` (with more than FULL_LENGTH_CHANNELS, over as much less).
    """
    with opened(source) as file:
        seconds = max_seconds * min(1.0, FULL_LENGTH_CHANNELS / file.channels)
        return _joined(_blocks(file, sample_rate, seconds), file, sample_rate, seconds)


def read_mono(source: Source, sample_rate: int, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """The whole file as mono [T] at `sample_rate` (Hz): `downmix(read(...))`, but all channels of no more than a block
    are ever held.

    Raises:
        BadSampleError: as `read`, but any number of channels may last `max_seconds`.
    """
    with opened(source) as file:
        blocks = _blocks(file, sample_rate, max_seconds)
        mono = (downmix(block)[:, None] for block in blocks)
        return _joined(mono, file, sample_rate, max_seconds)[:, 0]


def _blocks(
    file: soundfile.SoundFile, sample_rate: int, max_seconds: float
) -> Iterator[np.ndarray]:
    """The audio of an open file at `sample_rate`, a block [n, C] after another; checked as `read` promises."""
    low, high = WANTED_RATES
    if not low <= sample_rate <= high:
        raise BadSampleError(
            "sample_rate", f"sample rate {sample_rate} Hz is outside {low}..{high}"
        )
    promised = file.frames if file.frames < UNKNOWN_LENGTH else 0
    limit = f"{max_seconds:g} seconds"
    if file.channels > FULL_LENGTH_CHANNELS:
        limit += f", the limit with {file.channels} channels"
    too_long = BadSampleError("other", f"too long: it lasts over {limit}")
    if promised > max_seconds * file.samplerate:
        raise too_long
    yield np.zeros((0, file.channels), np.float32)
    resampler = soxr.ResampleStream(
        file.samplerate, sample_rate, file.channels, dtype="float32", quality="VHQ"
    )
    same_rate = file.samplerate == sample_rate
    frames = 0
    while True:
        try:
            block = file.read(BLOCK, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise BadSampleError("undecodable", f"unreadable: {error.error_string}") from error
        if not len(checked_samples(block)):
            break
        frames += len(block)
        if frames > max_seconds * file.samplerate:
            raise too_long
        yield block if same_rate else resampler.resample_chunk(block)
    if not same_rate:
        yield resampler.resample_chunk(np.zeros((0, file.channels), np.float32), last=True)
    # over a second is missing of what the header promised (MP3 headers are a little off by habit)
    if frames + file.samplerate < promised:
        raise BadSampleError(
            "undecodable", f"unreadable: ends after {frames} of {promised} promised frames"
        )


def _joined(
    blocks: Iterator[np.ndarray], file: soundfile.SoundFile, sample_rate: int, max_seconds: float
) -> np.ndarray:
    """`blocks` as one array [T, C]. It grows in place: a list joined at the end would be held twice."""
    first = next(blocks)
    seconds = 0.0
    if file.frames < UNKNOWN_LENGTH:
        seconds = min(max_seconds, 1 + file.frames / file.samplerate)
    # Memory that nothing is written to costs nothing, so what a header promises may be asked for.
    audio = np.empty((BLOCK + int(seconds * sample_rate), first.shape[1]), np.float32)
    frames = 0
    for block in blocks:
        if frames + len(block) > len(audio):
            audio.resize((2 * (frames + len(block)), audio.shape[1]), refcheck=False)
        audio[frames : frames + len(block)] = block
        frames += len(block)
    audio.resize((frames, audio.shape[1]), refcheck=False)
    return audio


def read_slice(
    file_like: BinaryIO, start: int, frames: int, sample_rate: int | None = None
) -> np.ndarray:
    """Exactly `frames` frames from frame `start`, [frames, C] float32. Nothing is resampled,
    nothing is padded.

    Raises:
        BadSampleError: they cannot be read, or the file's rate is not `sample_rate` (Hz) where one
            is given.
    """
    with opened(file_like, soundfile.SoundFile) as file:
        if sample_rate is not None and file.samplerate != sample_rate:
            raise BadSampleError(
                "sample_rate", f"sample rate is {file.samplerate} Hz, wanted {sample_rate} Hz"
            )
        try:
            file.seek(start)
            x = file.read(frames, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise BadSampleError("undecodable", f"unreadable at frame {start}: {error}") from error
    if len(x) != frames:
        raise BadSampleError("too_short", f"only {len(x)} of {frames} frames at frame {start}")
    return checked_samples(x)


def read_mono_slice(
    file_like: BinaryIO,
    start: int,
    frames: int,
    sample_rate: int | None = None,
    mix: float = 0.5,
) -> np.ndarray:
    """`downmix(read_slice(...), mix)`, [frames] float32, but all channels of no more than a block are ever held."""
    if frames <= BLOCK:
        return downmix(read_slice(file_like, start, frames, sample_rate), mix)
    mono = np.empty(frames, np.float32)
    for first in range(0, frames, BLOCK):
        count = min(BLOCK, frames - first)
        x_TC = read_slice(file_like, start + first, count, sample_rate)
        mono[first : first + count] = downmix(x_TC, mix)
    return mono


def resampled(x: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """[T, C] at `rate` Hz as [T', C] at `wanted` Hz, at soxr's very high quality."""
    return x if rate == wanted else soxr.resample(x, rate, wanted, quality="VHQ")


def encode_flac(x: np.ndarray, sample_rate: int, bits: int = 16) -> bytes:
    """[T, C] as a FLAC file of 16 or 24 bits.

    Rounded to the nearest step, clipped at full scale, no dither: the same audio always gives the same
    bytes, and audio that came from `bits` bits is kept exactly.
    """
    return encoded(quantised(x, bits), sample_rate, "FLAC", f"PCM_{bits}")


def encode_wav(x: np.ndarray, sample_rate: int) -> bytes:
    """[T, C] as a WAV file of 32-bit floats; nothing is lost."""
    return encoded(np.asarray(x, np.float32), sample_rate, "WAV", "FLOAT")


def write_wav(path: str | Path, x: np.ndarray, sample_rate: int, bits: int = 16) -> None:
    """[T] or [T, C] as a WAV file of 16, 24 or (float) 32 bits, whole or not at all."""
    if bits == 32:
        write_atomic(path, encode_wav(x, sample_rate))
    else:
        write_atomic(path, encoded(quantised(x, bits), sample_rate, "WAV", f"PCM_{bits}"))


def downmix(x: np.ndarray, mix: float = 0.5) -> np.ndarray:
    """[T, C] -> mono [T]: mix * left + (1 - mix) * right. Mono comes back unchanged.

    More than two channels are taken in pairs: left is the mean of channels 0, 2, 4 ..., right of 1,
    3, 5 ...
    """
    if x.shape[1] == 1:
        return x[:, 0]
    if x.shape[1] == 2:
        left = x[:, 0]
        right = x[:, 1]
    else:
        left = x[:, 0::2].mean(axis=1)
        right = x[:, 1::2].mean(axis=1)
    mixed = np.multiply(left, np.float32(mix), dtype=np.float32)
    mixed += np.float32(1 - mix) * right
    return mixed


def container(head: bytes) -> str | None:
    """Which of CONTAINERS the first bytes of a file announce.

    None for anything else, whatever its name ends in.
    """
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "WAV"
    if head[:4] == b"fLaC":
        return "FLAC"
    if head[:4] == b"OggS":
        return "OGG"
    if head[:3] == b"ID3":
        return "MP3"
    # an MP3 frame starts with eleven set bits and a layer that is not 0 (layer 0 is AAC)
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06:
        return "MP3"
    return None


def opened(source: Source, kind: type[soundfile.SoundFile] = ForwardReader) -> soundfile.SoundFile:
    """The sound file at `source`; the caller closes it.

    Raises:
        BadSampleError: its container, channels or rate are out of bounds, or it cannot be decoded.
    """
    if isinstance(source, (str, Path)):
        try:
            with open_given(source) as file:
                return opened(file, kind)
        except (IsADirectoryError, UnsafeFileError):
            # a named pipe, for whose end we would wait for ever
            raise BadSampleError("undecodable", "unreadable: not a file") from None
    if isinstance(source, io.BufferedReader) and isinstance(source.raw, io.FileIO):
        # libsndfile reads it itself, without calls of ours, under a number of its own
        number = os.dup(source.fileno())
        os.lseek(number, 0, os.SEEK_SET)
        return _opened_file(number, os.pread(number, HEAD, 0), kind)
    source.seek(0)  # an open file is put back to its start
    head = source.read(HEAD)
    source.seek(0)
    return _opened_file(source, head, kind)


def _opened_file(
    source: int | BinaryIO, head: bytes, kind: type[soundfile.SoundFile]
) -> soundfile.SoundFile:
    """The sound file that begins with `head`; it closes `source` where that is the number of an open file."""
    announced = container(head)
    if announced is None:
        if isinstance(source, int):
            os.close(source)
        known = ", ".join(CONTAINERS)
        raise BadSampleError("undecodable", f"unreadable: not one of {known} by its first bytes")
    try:
        file = kind(source)
    except soundfile.LibsndfileError as error:  # which has closed the file of that number
        raise BadSampleError("undecodable", f"unreadable: {error.error_string}") from error
    try:
        check_header(file, announced)
    except BadSampleError:
        file.close()
        raise
    return file


def check_header(file: soundfile.SoundFile, announced: str) -> None:
    """Raises BadSampleError if an open sound file cannot be a song."""
    if LIBSNDFILE_NAMES.get(file.format) != announced:
        raise BadSampleError(
            "undecodable", f"unreadable: announces {announced} but is {file.format}"
        )
    if file.channels > MAX_CHANNELS:
        raise BadSampleError(
            "undecodable",
            f"unreadable: {file.channels} channels; at most {MAX_CHANNELS} are read",
        )
    low, high = SAMPLE_RATES
    if not low <= file.samplerate <= high:
        raise BadSampleError(
            "sample_rate", f"unreadable: sample rate {file.samplerate} Hz is outside {low}..{high}"
        )


def checked_samples(x: np.ndarray) -> np.ndarray:
    """`x` itself. Raises BadSampleError if it holds NaN, infinity or amplitudes beyond
    MAX_AMPLITUDE.
    """
    peak = loudest(x)
    if not np.isfinite(peak):
        raise BadSampleError("not_finite", "not finite: it holds NaN or infinity")
    if peak > MAX_AMPLITUDE:
        raise BadSampleError(
            "too_loud",
            f"too loud: amplitude {peak:g} is beyond {MAX_AMPLITUDE:g}, where full scale is 1",
        )
    return x


def loudest(x: np.ndarray) -> float:
    """The largest amplitude in `x`, 0 for no samples, NaN if there is one; without a copy of a
    whole song.
    """
    return float(np.maximum(x.max(initial=0.0), -x.min(initial=0.0)))


def quantised(x: np.ndarray, bits: int) -> np.ndarray:
    """Float audio as whole steps of `bits` bits, in the integer type that soundfile writes them
    from.
    """
    if bits not in (16, 24):
        raise UserError(f"bits {bits} is not possible; choose 16 or 24")
    scale = 1 << (bits - 1)
    # a power of two, so exact; and float32 holds all steps of 24 bits
    steps = np.multiply(x, scale, dtype=np.float32)
    np.clip(np.rint(steps, out=steps), -scale, scale - 1, out=steps)
    return steps.astype(np.int16) if bits == 16 else steps.astype(np.int32) << 8


def encoded(x: np.ndarray, sample_rate: int, container: str, subtype: str) -> bytes:
    """The bytes of a sound file."""
    with io.BytesIO() as file:
        soundfile.write(file, x, sample_rate, format=container, subtype=subtype)
        return file.getvalue()
