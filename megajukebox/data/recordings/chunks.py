"""Files of chunks: WAV (RIFF, RIFX, RF64, BW64), AIFF and CAF. How much sound is in them, whatever their headers say.

|RIFF size WAVE|fmt  size ...|LIST size ...|data size =====sound=====|LIST size ...|
                                                 what a recorder writes last, if it comes to that
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from megajukebox.common.errors import BadSampleError
from megajukebox.data.recordings.channels import Speakers, speakers_of_mask
from megajukebox.data.recordings.pieces import ByteView, Piece, Span

MAX_CHUNKS = 10_000
EXTENSIBLE = 0xFFFE  # the format tag of a WAV that names its speakers
PCM_TAGS = (1, 3)  # whole numbers, floats: a frame has a size
# Sizes of what was written before its length was known: never closed, ffmpeg's and others' pipes, SoX, arecord.
UNKNOWN_SIZES = {0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0x80000000, 0xFFFFFFFE, 0xFFFFFF00}
UNKNOWN_CAF_SIZE = 0xFFFFFFFFFFFFFFFF
WAV_MAGICS = (b"RIFF", b"RIFX", b"RF64", b"BW64")
# Chunks that may stand behind the sound, whole or cut.
METADATA_CHUNKS = {
    *(b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"axml", b"chna", b"_PMX", b"cue ", b"smpl"),
    *(b"JUNK", b"PAD ", b"FLLR", b"fact", b"PEAK", b"inst", b"acid", b"DISP", b"cart", b"ANNO"),
    *(b"NAME", b"AUTH", b"(c) ", b"MARK", b"INST", b"APPL", b"COMT", b"afsp", b"umid", b"minf"),
}
# Behind the sound there may be what is no chunk: a tag, zeros, a few bytes of some program.
TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")
FEW_SECONDS = 0.1
CAF_EDIT_COUNT = 4  # bytes before the sound
MAX_RATE = 1e7  # Hz; more is no rate
COMPRESSED_FRAME = 1  # bytes; where a frame has no size, bytes are counted


class Chunk(NamedTuple):
    """A chunk's four letters, where its content starts, and how many bytes it says that has."""

    name: bytes
    start: int
    size: int


@dataclass
class ChunkLayout:
    """Where the sound of a file lies, and how much of it there is."""

    pieces: tuple[Piece, ...] | None  # what a decoder is given; None: the file as it is
    frames: int | None  # that there are; None: compressed, and not to be known before it is decoded
    speakers: Speakers | None = None  # that the file names
    note: str = ""
    next_start: int | None = None  # where another file begins, joined to this one


class SoundFormat(NamedTuple):
    """What a frame of the sound is."""

    frame_bytes: int
    byte_rate: int  # a second
    is_pcm: bool
    channels: int
    mask: int


def riff_chunks(view: ByteView, start: int, order: str) -> Iterator[Chunk]:
    """Chunks of which one begins at `start`, as long as they look like some."""
    for _ in range(MAX_CHUNKS):
        header = view.at(start, 8)
        if len(header) < 8 or not is_chunk_name(header[:4]):
            return
        chunk = Chunk(header[:4], start + 8, number(header[4:], order))
        yield chunk
        start = chunk.start + chunk.size + chunk.size % 2


def is_chunk_name(name: bytes) -> bool:
    return all(0x20 <= byte < 0x7F for byte in name)


def number(data: bytes, order: str) -> int:
    return int.from_bytes(data, "big" if order == "big" else "little")


def byte_order(value: int, order: str) -> bytes:
    return value.to_bytes(4, "big" if order == "big" else "little")


# ---- WAV


def wav_layout(view: ByteView, start: int) -> ChunkLayout:
    """The sound of the WAV that begins at `start`.

    Raises:
        BadSampleError: it holds less sound than it says, or more behind it that is no chunk.
    """
    magic = view.at(start, 4)
    order = "big" if magic == b"RIFX" else "little"
    sound_format: SoundFormat | None = None
    long_size: int | None = None  # of the sound, where 32 bits do not hold it
    for chunk in riff_chunks(view, start + 12, order):
        if chunk.name == b"ds64":
            long_size = number(view.at(chunk.start + 8, 8), "little")
        elif chunk.name == b"fmt ":
            sound_format = wav_format(view.at(chunk.start, min(chunk.size, 40)), order)
        elif chunk.name == b"data":
            break
    else:
        return ChunkLayout(None, None)  # the decoder says what is wrong
    if sound_format is None or not sound_format.frame_bytes:
        return ChunkLayout(None, None)
    if chunk.size == 0xFFFFFFFF and long_size is not None:
        chunk = chunk._replace(size=long_size)
    measured = measure_sound(view, chunk, order, sound_format, start)
    layout = measured.layout
    if sound_format.mask and sound_format.channels > 1:
        layout.speakers = speakers_of_mask(sound_format.mask, sound_format.channels)
    renamed = {b"BW64": b"RF64" if long_size is not None else b"RIFF"}.get(magic)
    is_patched = renamed or measured.is_unknown or layout.next_start is not None or start
    if is_patched:
        head: tuple[Piece, ...] = (renamed or magic, Span(start + 4, chunk.start))
        if measured.is_unknown:
            size = min(measured.stop - chunk.start, 0xFFFFFFFF)
            head = (magic, Span(start + 4, chunk.start - 4), byte_order(size, order))
        layout.pieces = (*head, Span(chunk.start, measured.stop))
    return layout


def wav_format(data: bytes, order: str) -> SoundFormat | None:
    if len(data) < 16:
        return None
    tag = number(data[:2], order)
    mask = 0
    if tag == EXTENSIBLE and len(data) >= 26:
        mask = number(data[20:24], order)
        tag = number(data[24:26], order)
    channels = number(data[2:4], order)
    frame_bytes = number(data[12:14], order)
    bits = number(data[14:16], order)
    is_pcm = tag in PCM_TAGS and frame_bytes == channels * ((bits + 7) // 8)
    return SoundFormat(frame_bytes, number(data[8:12], order), is_pcm, channels, mask)


class MeasuredSound(NamedTuple):
    """What `measure_sound` found."""

    layout: ChunkLayout
    stop: int  # where the sound ends
    is_unknown: bool  # its size was not written


def measure_sound(
    view: ByteView, chunk: Chunk, order: str, sound_format: SoundFormat, file_start: int
) -> MeasuredSound:
    """Compare the size of the sound's chunk with the bytes that there are.

    Raises:
        BadSampleError: see `wav_layout`.
    """
    available = view.size - chunk.start
    frame_bytes = sound_format.frame_bytes if sound_format.is_pcm else COMPRESSED_FRAME
    unit = "frames" if sound_format.is_pcm else "bytes"
    if has_unknown_size(view, chunk, order, frame_bytes):
        note = ""  # of what was written into a pipe, where it is how things are done
        if chunk.size == 0:
            note = f"its header says 0 {unit} of sound; all {available // frame_bytes} were read"
        frames = available // frame_bytes if sound_format.is_pcm else None
        return MeasuredSound(ChunkLayout(None, frames, note=note), view.size, True)
    stop = chunk.start + min(chunk.size, available)
    promised = chunk.size // frame_bytes
    there_are = (stop - chunk.start) // frame_bytes
    layout = ChunkLayout(None, there_are if sound_format.is_pcm else None)
    if there_are < promised:
        # Some programs count the header as sound.
        if chunk.size - available > chunk.start - file_start:
            raise BadSampleError(
                "undecodable",
                f"unreadable: ends after {there_are} of {promised} promised {unit}",
            )
        layout.note = f"its header says {promised} {unit}, there are {there_are}"
    rest, layout.next_start = after_sound(view, stop + chunk.size % 2, order)
    if rest >= frame_bytes:
        check_rest(rest, chunk.size, frame_bytes, unit, sound_format.byte_rate)
        layout.note = f"{rest} bytes behind its sound are no chunk and were left out"
    return MeasuredSound(layout, stop, False)


def has_unknown_size(view: ByteView, chunk: Chunk, order: str, frame_bytes: int) -> bool:
    """Whether the size of the sound was not known when the header was written, nor written later."""
    available = view.size - chunk.start
    if chunk.size == 0:
        return available >= frame_bytes and after_sound(view, chunk.start, order) != (0, None)
    return chunk.size in UNKNOWN_SIZES and chunk.size > available


def check_rest(rest: int, size: int, frame_bytes: int, unit: str, byte_rate: int) -> None:
    """Raises BadSampleError if bytes behind the sound are so many that they are sound, too."""
    if rest > FEW_SECONDS * byte_rate:
        raise BadSampleError(
            "undecodable",
            f"unreadable: its header says {size // frame_bytes} {unit}, {rest // frame_bytes} more "
            "follow; open it in an editor, look at its end, and save it",
        )


def after_sound(view: ByteView, start: int, order: str) -> tuple[int, int | None]:
    """(bytes from `start` on that are no chunk, no tag, no zeros and no other file; where such a file begins)."""
    for chunk in riff_chunks(view, start, order):
        if chunk.name in WAV_MAGICS and view.at(start + 8, 4) == b"WAVE":
            return 0, start
        stop = chunk.start + chunk.size
        if stop > view.size and chunk.name not in METADATA_CHUNKS:
            break
        start = min(stop + chunk.size % 2, view.size)
    behind_zeros = view.after_zeros(start, view.size)
    if behind_zeros == view.size or view.at(behind_zeros, 16).startswith(TAGS):
        return 0, None
    return view.size - start, None


# ---- AIFF and CAF

AIFF_PCM = {
    b"NONE",
    b"twos",
    b"sowt",
    b"in24",
    b"in32",
    b"fl32",
    b"FL32",
    b"fl64",
    b"FL64",
    b"raw ",
}


def aiff_layout(view: ByteView, start: int) -> ChunkLayout:
    """The sound of the AIFF or AIFF-C that begins at `start`.

    Raises:
        BadSampleError: it holds less, or more, sound than it says.
    """
    is_compressed = view.at(start + 8, 4) == b"AIFC"
    frames = frame_bytes = rate = 0
    sound: Chunk | None = None
    for chunk in riff_chunks(view, start + 12, "big"):
        if chunk.name == b"COMM":
            data = view.at(chunk.start, min(chunk.size, 22))
            channels = number(data[:2], "big")
            frames = number(data[2:6], "big")
            frame_bytes = channels * ((number(data[6:8], "big") + 7) // 8)
            rate = extended(data[8:18])
            is_compressed = is_compressed and data[18:22] not in AIFF_PCM
        elif chunk.name == b"SSND":
            sound = chunk
    pieces = None if not start else (Span(start, view.size),)
    if sound is None or not frame_bytes or is_compressed:
        return ChunkLayout(pieces, None)
    offset = 8 + number(view.at(sound.start, 4), "big")
    available = max(0, min(view.size, sound.start + sound.size) - sound.start - offset)
    if sound.size <= 8 and view.size > sound.start + sound.size + frame_bytes:
        sound = sound._replace(size=view.size - sound.start)  # never closed
        available = max(0, view.size - sound.start - offset)
        if not frames:
            return unclosed_aiff(view, start, sound, available // frame_bytes)
    there_are = available // frame_bytes
    if there_are < frames or sound.start + sound.size > view.size + 1:
        promised = max(frames, (sound.size - offset) // frame_bytes)
        raise BadSampleError(
            "undecodable", f"unreadable: ends after {there_are} of {promised} promised frames"
        )
    rest, _ = after_sound(view, sound.start + sound.size + sound.size % 2, "big")
    rest += available - frames * frame_bytes
    if rest >= frame_bytes:
        check_rest(rest, frames * frame_bytes, frame_bytes, "frames", rate * frame_bytes)
    return ChunkLayout(pieces, frames)


def unclosed_aiff(view: ByteView, start: int, sound: Chunk, frames: int) -> ChunkLayout:
    """The layout of an AIFF whose sizes were never written."""
    comm = next(chunk for chunk in riff_chunks(view, start + 12, "big") if chunk.name == b"COMM")
    pieces = (
        b"FORM" + byte_order(min(view.size - start - 8, 0xFFFFFFFF), "big"),
        Span(start + 8, comm.start + 2),
        byte_order(frames, "big"),
        Span(comm.start + 6, sound.start - 4),
        byte_order(min(sound.size, 0xFFFFFFFF), "big"),
        Span(sound.start, view.size),
    )
    note = f"its header says 0 frames; all {frames} of the file were read"
    return ChunkLayout(pieces, frames, note=note)


def extended(data: bytes) -> int:
    """A sample rate as AIFF writes it: 80 bits, a sign and 15 of an exponent, 64 of a mantissa."""
    exponent = number(data[:2], "big") & 0x7FFF
    shift = 16383 + 63 - exponent
    return number(data[2:10], "big") >> shift if 0 <= shift < 64 else 0


def caf_chunks(view: ByteView, start: int) -> Iterator[Chunk]:
    """Chunks of a Core Audio file, of which one begins at `start`."""
    for _ in range(MAX_CHUNKS):
        header = view.at(start, 12)
        if len(header) < 12 or not is_chunk_name(header[:4]):
            return
        chunk = Chunk(header[:4], start + 12, number(header[4:], "big"))
        yield chunk
        start = chunk.start + chunk.size


def caf_layout(view: ByteView, start: int) -> ChunkLayout:
    """The sound of the Core Audio file that begins at `start`.

    Raises:
        BadSampleError: it holds less sound than it says, or more behind it that is no chunk.
    """
    pieces = None if not start else (Span(start, view.size),)
    rate = 0.0
    frame_bytes = 0  # of PCM
    for chunk in caf_chunks(view, start + 8):
        if chunk.name == b"desc":
            data = view.at(chunk.start, 32).ljust(32, b"\0")
            rate = struct.unpack(">d", data[:8])[0]
            frame_bytes = number(data[16:20], "big") if data[8:12] == b"lpcm" else 0
        elif chunk.name == b"data":
            break
    else:
        return ChunkLayout(pieces, None)
    available = view.size - chunk.start
    size = available if chunk.size == UNKNOWN_CAF_SIZE else chunk.size
    unit = max(1, frame_bytes)
    name = "frames" if frame_bytes else "bytes"
    there_are = max(0, min(size, available) - CAF_EDIT_COUNT) // unit
    promised = max(0, size - CAF_EDIT_COUNT) // unit
    if there_are < promised:
        raise BadSampleError(
            "undecodable", f"unreadable: ends after {there_are} of {promised} promised {name}"
        )
    end = chunk.start + size
    for later in caf_chunks(view, end):
        end = min(view.size, later.start + later.size)
    rest = view.size - view.after_zeros(end, view.size)
    if frame_bytes and 0 < rate < MAX_RATE:
        check_rest(rest, size - CAF_EDIT_COUNT, unit, name, int(rate * unit))
    return ChunkLayout(pieces, there_are if frame_bytes else None)
