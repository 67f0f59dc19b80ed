"""All that is known about codecs: reading, resampling, encoding, mixing. The only file that imports
soundfile and soxr.

Audio is float32 [T, C]: T frames (one sample of every channel), C channels, full scale -1..1.
No header is trusted: files are read in blocks under a cap, and every slice is measured before it is
handed on.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from megajukebox.common.errors import BadSampleError, UserError
from megajukebox.common.files import FileWindow, write_atomic

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
MAX_SECONDS = 3600.0
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
        BadSampleError: it cannot be decoded, ends early, lasts over `max_seconds`, or holds NaN,
            infinity or amplitudes beyond MAX_AMPLITUDE.
    """
    with opened(source) as file:
        resampler = soxr.ResampleStream(
            file.samplerate, sample_rate, file.channels, dtype="float32", quality="VHQ"
        )
        same_rate = file.samplerate == sample_rate
        blocks = []
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
                raise BadSampleError("other", f"too long: it lasts over {max_seconds:g} seconds")
            blocks.append(block if same_rate else resampler.resample_chunk(block))
        if not same_rate:
            blocks.append(
                resampler.resample_chunk(np.zeros((0, file.channels), np.float32), last=True)
            )
        # over a second is missing of what the header promised (MP3 headers are a little off by
        # habit)
        if frames + file.samplerate < file.frames < UNKNOWN_LENGTH:
            raise BadSampleError(
                "undecodable", f"unreadable: ends after {frames} of {file.frames} promised frames"
            )
        return np.concatenate([np.zeros((0, file.channels), np.float32), *blocks])


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
        if Path(source).exists() and not Path(source).is_file():
            # a named pipe, for whose end we would wait for ever
            raise BadSampleError("undecodable", "unreadable: not a file")
        with open(source, "rb") as file_at_start:
            head = file_at_start.read(12)
    else:  # an open file is put back to its start
        source.seek(0)
        head = source.read(12)
        source.seek(0)
    announced = container(head)
    if announced is None:
        known = ", ".join(CONTAINERS)
        raise BadSampleError("undecodable", f"unreadable: not one of {known} by its first bytes")
    try:
        file = kind(source)
    except soundfile.LibsndfileError as error:
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
