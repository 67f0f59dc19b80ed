"""A recording of a user, open: what it is, and its blocks as they are in the file. libsndfile decodes it, or ffmpeg."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from megajukebox.common.errors import BadSampleError
from megajukebox.common.untrusted_files import UnsafeFileError, open_given
from megajukebox.data.recordings.channels import LIBSNDFILE_SPEAKERS, Speakers, fold_matrix
from megajukebox.data.recordings.foreign_audio import ForeignDecoder
from megajukebox.data.recordings.kinds import RecordingReader
from megajukebox.data.recordings.pieces import ByteView, SplicedFile
from megajukebox.data.recordings.plan import AudioNote, LinkPlan, RecordingPlan, plan_of

# What libsndfile calls the files that each reader of ours is for.
LIBSNDFILE_NAMES = {
    RecordingReader.WAV: {"WAV", "WAVEX", "RF64"},
    RecordingReader.FLAC: {"FLAC"},
    RecordingReader.OGG: {"OGG"},
    RecordingReader.MPEG: {"MP3"},
    RecordingReader.AIFF: {"AIFF"},
    RecordingReader.CAF: {"CAF"},
}
MAX_CHANNELS = 8
STEREO = 2
SAMPLE_RATES = (4_000, 192_000)
BLOCK = 1 << 18  # frames read at a time, 6 s at 44.1 kHz
UNKNOWN_LENGTH = 1 << 62  # libsndfile's frame count where the header has none
# By so much a decoder of a lossy file may come short of the frames in it: what an encoder put before and after.
LOSSY_TOLERANCE = 1.0  # seconds
CHANNEL_MAP = 0x1100  # libsndfile's command SFC_GET_CHANNEL_MAP_INFO

Source = str | Path | BinaryIO


@dataclass(frozen=True)
class AudioInfo:
    """What an audio file is, and how long by its frames, or where these have no length of their own, by its header."""

    container: str  # "WAV", "FLAC", "OGG", "MP3" ...: see recordings/kinds.py
    subtype: str  # e.g. "PCM_16", "VORBIS"
    sample_rate: int  # Hz
    channels: int
    frames: int | None  # None: not to be known before it is decoded

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


@dataclass
class OpenRecording:
    """A recording that is open, before its first block."""

    info: AudioInfo
    promised: int | None  # frames
    speakers: Speakers  # its channels
    matrix: np.ndarray | None  # that folds them
    notes: list[AudioNote]
    decode: Iterator[np.ndarray]  # its blocks [n, C], as they are in the file

    def scale(self, samples: np.ndarray, peak: float) -> None:
        """Scale what was folded, if it would clip, by one factor and in place."""
        if self.matrix is None:
            return
        factor = min(1.0, 1.0 / peak) if peak else 1.0
        sides = "left and right" if self.matrix.shape[1] == STEREO else "one"
        left_out = ", without LFE" if "LFE" in self.speakers else ""
        detail = f"{' '.join(self.speakers)} folded into {sides} (ITU-R BS.775{left_out})"
        if factor < 1.0:
            samples *= np.float32(factor)
            detail += f", scaled by {factor:.3f} so that it does not clip"
        self.notes.append(AudioNote("folded", detail))

    def note_rate(self, sample_rate: int) -> None:
        rate = self.info.sample_rate
        if rate != sample_rate:
            self.notes.append(AudioNote("resampled", f"from {rate} to {sample_rate} Hz"))


@contextmanager
def as_file(source: Source) -> Iterator[BinaryIO]:
    """`source` as an open file, at its start.

    Raises:
        BadSampleError: it is a folder, a pipe, or the like.
    """
    if not isinstance(source, str | Path):
        source.seek(0)
        yield source
        return
    try:
        file = open_given(source)
    except (IsADirectoryError, UnsafeFileError):
        # a named pipe, for whose end we would wait for ever
        raise BadSampleError("undecodable", "unreadable: not a file") from None
    with file:
        yield file


@contextmanager
def opened_recording(source: Source) -> Iterator[OpenRecording]:
    """A recording, recognised, looked at, and open.

    Raises:
        BadSampleError: it is none that can be read, or its channels or rate are out of bounds.
    """
    with as_file(source) as file:
        plan = plan_of(ByteView(file))
        if plan.kind.reader is RecordingReader.FFMPEG:
            with ForeignDecoder(spliced(file, plan.links[0]), plan.kind) as foreign:
                yield foreign_recording(foreign, plan)
        else:
            yield own_recording(file, plan)


def own_recording(file: BinaryIO, plan: RecordingPlan) -> OpenRecording:
    """A recording that libsndfile decodes; its links are opened one by one, and looked at here."""
    frames: int | None = 0
    formats = []
    speakers: Speakers = ()
    subtype = ""
    for number, link in enumerate(plan.links):
        with open_link(file, plan, link) as sound:
            formats.append((sound.samplerate, sound.channels))
            there_are = link.promised if link.promised is not None else link.at_least
            if there_are is None and sound.frames < UNKNOWN_LENGTH:
                there_are = sound.frames
            frames = None if frames is None or there_are is None else frames + there_are
            if number == 0:
                subtype = sound.subtype
                speakers = speakers_of(sound, plan, link)
    rate, channels = formats[0]
    if set(formats) != {formats[0]}:
        others = ", then ".join(
            f"{rate} Hz and {channels} channels" for rate, channels in formats[:4]
        )
        raise BadSampleError(
            "undecodable",
            f"unreadable: different recordings are joined in it ({others}); cut it up",
        )
    info = AudioInfo(plan.kind.name, subtype, rate, channels, frames)
    decode = own_blocks(file, plan)
    return OpenRecording(info, frames, speakers, fold_matrix(speakers), plan.notes, decode)


def foreign_recording(foreign: ForeignDecoder, plan: RecordingPlan) -> OpenRecording:
    """A recording that ffmpeg decodes."""
    check_bounds(foreign.channels, foreign.sample_rate)
    assert foreign.speakers is not None, "up to MAX_CHANNELS have an order"
    speakers = foreign.speakers
    matrix = fold_matrix(speakers)
    info = AudioInfo(
        plan.kind.name, foreign.codec, foreign.sample_rate, foreign.channels, foreign.promised
    )
    if foreign.sounds > 1:
        detail = f"the first of its {foreign.sounds} streams of sound was read"
        plan.notes.append(AudioNote("length", detail))
    return OpenRecording(info, foreign.promised, speakers, matrix, plan.notes, foreign.blocks())


def speakers_of(sound: soundfile.SoundFile, plan: RecordingPlan, link: LinkPlan) -> Speakers:
    """What its channels are: as the file names them, or in the order of its format."""
    if link.speakers is not None:
        return link.speakers
    if plan.kind.reader in (RecordingReader.AIFF, RecordingReader.CAF) and sound.channels > 1:
        numbers = soundfile._ffi.new("int[]", sound.channels)
        size = soundfile._ffi.sizeof(numbers)
        if soundfile._snd.sf_command(sound._file, CHANNEL_MAP, numbers, size):
            names = [LIBSNDFILE_SPEAKERS.get(number) for number in numbers]
            if None not in names and len(set(names)) == len(names):
                return tuple(name for name in names if name is not None)
    return plan.orders[sound.channels]


def spliced(file: BinaryIO, link: LinkPlan) -> BinaryIO:
    """The bytes that the decoder of a link is given."""
    return file if link.pieces is None else SplicedFile(file, link.pieces)  # type: ignore[return-value]


def open_link(
    file: BinaryIO,
    plan: RecordingPlan,
    link: LinkPlan,
    kind: type[soundfile.SoundFile] = ForwardReader,
) -> soundfile.SoundFile:
    """One link, read by libsndfile; the caller closes it.

    Raises:
        BadSampleError: it cannot be decoded, or its channels or rate are out of bounds.
    """
    return sound_file(spliced(file, link), plan.kind.reader, kind)


def own_blocks(file: BinaryIO, plan: RecordingPlan) -> Iterator[np.ndarray]:
    """The frames of all links, a block [n, C] after another.

    Raises:
        BadSampleError: a link cannot be decoded, or has fewer frames than it must have.
    """
    for link in plan.links:
        with open_link(file, plan, link) as sound:
            promised = link.promised if link.promised is not None else link.at_least
            is_lossless = promised is not None and not link.is_padded
            if promised is None and sound.frames < UNKNOWN_LENGTH:
                promised = sound.frames
            frames = 0
            while not (link.is_padded and frames == promised):
                # first just what is promised, so that an error behind it costs nothing
                is_behind = promised is None or frames >= promised
                wanted = BLOCK
                if promised is not None and not is_behind:
                    wanted = min(BLOCK, promised - frames)
                try:
                    block = sound.read(wanted, dtype="float32", always_2d=True)
                except soundfile.LibsndfileError as error:
                    if promised is not None and is_behind:
                        plan.note("damaged", f"what follows its {promised} frames was left out")
                        break
                    raise BadSampleError(
                        "undecodable", f"unreadable: {error.error_string}"
                    ) from error
                if not len(block):
                    break
                frames += len(block)
                yield block
            check_length(frames, promised, is_lossless, sound.samplerate, plan)


def check_length(
    frames: int, promised: int | None, is_lossless: bool, rate: int, plan: RecordingPlan
) -> None:
    """Compare what was decoded of a link with what it must have, or says.

    Raises:
        BadSampleError: it ended early.
    """
    if promised is None or frames == promised:
        return
    tolerance = 0 if is_lossless else LOSSY_TOLERANCE * rate
    if frames + tolerance < promised:
        raise BadSampleError(
            "undecodable", f"unreadable: ends after {frames} of {promised} promised frames"
        )
    plan.note("length", f"its header says {promised} frames, {frames} were decoded")


def sound_file(
    source: BinaryIO, reader: RecordingReader, kind: type[soundfile.SoundFile] = ForwardReader
) -> soundfile.SoundFile:
    """The sound file in `source`; the caller closes it.

    Raises:
        BadSampleError: it is not what `reader` reads, its channels or rate are out of bounds, or it cannot be decoded.
    """
    given: int | BinaryIO = source
    if isinstance(source, io.BufferedReader) and isinstance(source.raw, io.FileIO):
        # libsndfile reads it itself, without calls of ours, under a number of its own
        given = os.dup(source.fileno())
        os.lseek(given, 0, os.SEEK_SET)
    else:
        source.seek(0)
    try:
        sound = kind(given)
    except soundfile.LibsndfileError as error:  # which has closed the file of that number
        raise BadSampleError("undecodable", f"unreadable: {error.error_string}") from error
    try:
        if sound.format not in LIBSNDFILE_NAMES[reader]:
            announced = reader.value.upper()
            raise BadSampleError(
                "undecodable", f"unreadable: announces {announced} but is {sound.format}"
            )
        check_bounds(sound.channels, sound.samplerate)
    except BadSampleError:
        sound.close()
        raise
    return sound


def check_bounds(channels: int, sample_rate: int) -> None:
    """Raises BadSampleError for what cannot be a song."""
    if channels > MAX_CHANNELS:
        raise BadSampleError(
            "undecodable", f"unreadable: {channels} channels; at most {MAX_CHANNELS} are read"
        )
    low, high = SAMPLE_RATES
    if not low <= sample_rate <= high:
        raise BadSampleError(
            "sample_rate", f"unreadable: sample rate {sample_rate} Hz is outside {low}..{high}"
        )
