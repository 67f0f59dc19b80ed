"""Reading, resampling, encoding and mixing sound. The only file that imports soxr.

Audio is float32 [T, C]: T frames (one sample of every channel), C channels, full scale -1..1.
No header is trusted: `recordings/` looks at the bytes of a file before a decoder does, files are read in blocks under a
cap, and every slice is measured before it is handed on. More than two channels are folded into left and right.
"""

import io
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from megajukebox.common.errors import BadSampleError, UserError
from megajukebox.common.files import FileWindow, write_atomic
from megajukebox.data.recordings.channels import FLAC_ORDERS, fold, fold_matrix
from megajukebox.data.recordings.flac_blocks import named_speakers
from megajukebox.data.recordings.kinds import RecordingReader
from megajukebox.data.recordings.open_recording import (
    BLOCK,
    SAMPLE_RATES,
    AudioInfo,
    OpenRecording,
    Source,
    open_link,
    opened_recording,
    sound_file,
    speakers_of,
)
from megajukebox.data.recordings.pieces import ByteView
from megajukebox.data.recordings.plan import AudioNote, plan_of

log = logging.getLogger(__name__)

# Float files may overshoot full scale a little; beyond this it is not music but a broken file.
MAX_AMPLITUDE = 4.0
WANTED_RATES = (100, SAMPLE_RATES[1])  # a small model may be of 1 kHz
MAX_SECONDS = 3600.0
STORED_CHANNELS = 2  # at most; more are folded
STREAMINFO_HEAD = 21  # bytes of a FLAC up to the number of its channels


@dataclass
class DecodedRecording:
    """A whole recording, and what is to be told of it."""

    samples: np.ndarray  # [T, C], at most two channels
    notes: list[AudioNote] = field(default_factory=list)


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
    """What the file is.

    Raises BadSampleError for what nobody reads, for numbers no song has, and for what is shorter than it says.
    """
    with opened_recording(source) as recording:
        return recording.info


def read(source: Source, sample_rate: int, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """The whole file as [T, C] at `sample_rate` (Hz), resampled by soxr at its very high quality.

    Of more than two channels there are left and right; see `read_recording`.

    Raises:
        BadSampleError: see `read_recording`.
    """
    recording = read_recording(source, sample_rate, max_seconds)
    log_notes(recording.notes)
    return recording.samples


def read_recording(
    source: Source, sample_rate: int, max_seconds: float = MAX_SECONDS
) -> DecodedRecording:
    """The whole file at `sample_rate` (Hz), with what was noticed and changed.

    Read block by block, so a header that promises years of audio costs nothing. What is folded into left and right, and
    would clip then, is scaled by one factor.

    Raises:
        BadSampleError: it cannot be decoded, is shorter than it says or has more behind its end, holds NaN, infinity or
            amplitudes beyond MAX_AMPLITUDE, or lasts over `max_seconds`.
    """
    with opened_recording(source) as recording:
        samples = _joined(
            _blocks(recording, sample_rate, max_seconds), recording, sample_rate, max_seconds
        )
        recording.scale(samples, loudest(samples))
        recording.note_rate(sample_rate)
        return DecodedRecording(samples, recording.notes)


def read_mono(source: Source, sample_rate: int, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """The whole file as mono [T] at `sample_rate` (Hz): `downmix(read(...))`, but all channels of no more than a block
    are ever held.

    Raises:
        BadSampleError: as `read`.
    """
    peak = 0.0

    def mono(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        nonlocal peak
        for block in blocks:
            peak = max(peak, loudest(block))
            yield downmix(block)[:, None]

    with opened_recording(source) as recording:
        blocks = mono(_blocks(recording, sample_rate, max_seconds))
        samples = _joined(blocks, recording, sample_rate, max_seconds)
        recording.scale(samples, peak)
        log_notes(recording.notes)
        return samples[:, 0]


def log_notes(notes: list[AudioNote]) -> None:
    for note in notes:
        log.info("%s: %s", note.kind, note.detail)


def _blocks(recording: OpenRecording, sample_rate: int, max_seconds: float) -> Iterator[np.ndarray]:
    """The audio of an open recording at `sample_rate`, a block [n, C] after another; checked as `read` promises."""
    low, high = WANTED_RATES
    if not low <= sample_rate <= high:
        raise BadSampleError(
            "sample_rate", f"sample rate {sample_rate} Hz is outside {low}..{high}"
        )
    too_long = BadSampleError("other", f"too long: it lasts over {max_seconds:g} seconds")
    rate = recording.info.sample_rate
    if recording.promised is not None and recording.promised > max_seconds * rate:
        raise too_long
    matrix = recording.matrix
    channels = recording.info.channels if matrix is None else matrix.shape[1]
    yield np.zeros((0, channels), np.float32)
    resampler = soxr.ResampleStream(rate, sample_rate, channels, dtype="float32", quality="VHQ")
    same_rate = rate == sample_rate
    frames = 0
    for block in recording.decode:
        frames += len(block)
        if frames > max_seconds * rate:
            raise too_long
        folded = fold(checked_samples(block), matrix)
        yield folded if same_rate else resampler.resample_chunk(folded)
    if not same_rate:
        yield resampler.resample_chunk(np.zeros((0, channels), np.float32), last=True)


def _joined(
    blocks: Iterator[np.ndarray], recording: OpenRecording, sample_rate: int, max_seconds: float
) -> np.ndarray:
    """`blocks` as one array [T, C]. It grows in place: a list joined at the end would be held twice."""
    first = next(blocks)
    seconds = 0.0
    if recording.promised is not None:
        seconds = min(max_seconds, 1 + recording.promised / recording.info.sample_rate)
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


# ---- Slices


def read_slice(
    file_like: BinaryIO, start: int, frames: int, sample_rate: int | None = None
) -> np.ndarray:
    """Exactly `frames` frames from frame `start`, [frames, C] float32. Nothing is resampled, nothing is padded.

    More than two channels are folded into left and right, without a factor: a slice does not know the song's peak.

    Raises:
        BadSampleError: they cannot be read, or the file's rate is not `sample_rate` (Hz) where one
            is given.
    """
    file_like.seek(0)
    head = file_like.read(STREAMINFO_HEAD)
    if head[:4] == b"fLaC":  # mostly of our own shards, where the length stands in the index
        matrix = _matrix_of_flac(file_like, head)
        with sound_file(file_like, RecordingReader.FLAC, soundfile.SoundFile) as sound:
            return fold(_slice(sound, start, frames, sample_rate), matrix)
    plan = plan_of(ByteView(file_like))
    link = plan.links[0]
    if plan.kind.reader is RecordingReader.FFMPEG or len(plan.links) > 1:
        return _slice_of_whole(file_like, start, frames, sample_rate)
    with open_link(file_like, plan, link, soundfile.SoundFile) as sound:
        matrix = fold_matrix(speakers_of(sound, plan, link))
        return fold(_slice(sound, start, frames, sample_rate), matrix)


def _matrix_of_flac(file_like: BinaryIO, head: bytes) -> np.ndarray | None:
    """What folds a FLAC that begins with `head`."""
    channels = (head[-1] >> 1 & 7) + 1 if len(head) == STREAMINFO_HEAD else 1
    if channels <= STORED_CHANNELS:
        return None
    speakers = named_speakers(ByteView(file_like), 0, channels)
    return fold_matrix(speakers or FLAC_ORDERS[channels])


def _slice(
    sound: soundfile.SoundFile, start: int, frames: int, sample_rate: int | None
) -> np.ndarray:
    """Frames of an open file, as they are in it; raises as `read_slice`."""
    _check_rate(sound.samplerate, sample_rate)
    try:
        sound.seek(start)
        x = sound.read(frames, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise BadSampleError("undecodable", f"unreadable at frame {start}: {error}") from error
    if len(x) != frames:
        raise BadSampleError("too_short", f"only {len(x)} of {frames} frames at frame {start}")
    return checked_samples(x)


def _check_rate(rate: int, wanted: int | None) -> None:
    if wanted is not None and rate != wanted:
        raise BadSampleError("sample_rate", f"sample rate is {rate} Hz, wanted {wanted} Hz")


def _slice_of_whole(
    file_like: BinaryIO, start: int, frames: int, sample_rate: int | None
) -> np.ndarray:
    """A slice of what cannot be sought in: several recordings joined, or what ffmpeg decodes."""
    rate = facts(file_like).sample_rate
    _check_rate(rate, sample_rate)
    x = read(file_like, rate)[max(0, start) : start + frames]
    if start < 0 or len(x) != frames:
        raise BadSampleError("too_short", f"only {len(x)} of {frames} frames at frame {start}")
    return x


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


def read_channels_slice(
    file_like: BinaryIO,
    start: int,
    frames: int,
    sample_rate: int,
    channels: int,
    mix: float = 0.5,
) -> np.ndarray:
    """`as_channels(read_slice(...), channels, mix)`: [frames] of mono, [frames, 2] of stereo."""
    if channels == 1:
        return read_mono_slice(file_like, start, frames, sample_rate, mix)
    return as_channels(read_slice(file_like, start, frames, sample_rate), channels)


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

    More than two channels are first folded into left and right, in the order of FLAC's; `read` and `read_slice` have
    done that by what the file says.
    """
    if x.shape[1] > STORED_CHANNELS:
        x = fold(x, fold_matrix(FLAC_ORDERS[x.shape[1]]))
    if x.shape[1] == 1:
        return x[:, 0]
    mixed = np.multiply(x[:, 0], np.float32(mix), dtype=np.float32)
    mixed += np.float32(1 - mix) * x[:, 1]
    return mixed


def as_channels(x_TC: np.ndarray, channels: int, mix: float = 0.5) -> np.ndarray:
    """[T, C] as a model of so many channels takes it: mono [T], by `downmix`, or left and right [T, 2].

    A mono recording is the same on the left as on the right.
    """
    if channels == 1:
        return downmix(x_TC, mix)
    if x_TC.shape[1] > STORED_CHANNELS:
        x_TC = fold(x_TC, fold_matrix(FLAC_ORDERS[x_TC.shape[1]]))
    return x_TC if x_TC.shape[1] == channels else np.repeat(x_TC, channels, axis=1)


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
