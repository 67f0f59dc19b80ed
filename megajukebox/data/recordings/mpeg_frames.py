"""MPEG audio (MP1, MP2, MP3) has no length: it is the sum of its frames (ISO/IEC 11172-3, 13818-3), counted here.

    |ID3v2| |Xing| frame | frame | ... | frame | |APE| |ID3v1|
            what an encoder says of the frames that follow; a habit, and no part of the standard

A file joined of others has tags, and Xing frames, in its middle.
"""

import re
from typing import NamedTuple

from megajukebox.common.errors import BadSampleError
from megajukebox.data.recordings.pieces import WINDOW, ByteView, Padding, Piece, Span

SEARCH = 1 << 16  # bytes in which the first frame must begin
RESYNC = 1 << 24  # bytes that may lie between two frames: a tag with a picture
MAX_TRIES = 100_000  # at places that look like a header, a second or so; nobody's tag has as many
ANY_HEADER = re.compile(rb"\xff[\xe2-\xe7\xf2-\xff]")
# version, layer, rate: the same in all frames of a stream
KIND_MASK = 0xFFFE0C00
LENGTH_MASK = KIND_MASK | 0xF200  # and bit rate and padding, which decide a frame's bytes
RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
BIT_RATES = {  # (MPEG 1?, layer): kbit/s
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
BIT_RATES[False, 3] = BIT_RATES[False, 2]
XING_FRAMES_FLAG = 1
# A Xing frame may count itself, or leave out a last frame that is incomplete.
XING_TOLERANCE = 1
LONGEST_FRAME = 1729  # bytes: layer 2 of 384 kbit/s at 32 kHz, padded


class MpegFrame(NamedTuple):
    """What the four bytes before a frame say."""

    length: int  # bytes
    samples: int  # of each channel
    sample_rate: int  # Hz
    channels: int
    info_offset: int  # where a Xing frame has its mark


class MpegStream(NamedTuple):
    """Frames of one encoder, one after another."""

    frame_spans: tuple[Span, ...]  # runs of frames, without the Xing frame
    frames: int  # without the Xing frame
    first: MpegFrame
    info: Span | None  # the Xing frame
    claimed: int | None  # frames that it says

    @property
    def length(self) -> int:
        """Samples of each channel in all frames; a decoder leaves out what an encoder added, where it is told."""
        return self.frames * self.first.samples


def frame_of(word: int) -> MpegFrame | None:
    """The frame that begins with these 32 bits; None if none does, or if its length is free."""
    version = word >> 19 & 3
    layer = 4 - (word >> 17 & 3)
    bit_rate = word >> 12 & 15
    rate = word >> 10 & 3
    if word >> 21 != 0x7FF or version == 1 or layer == 4 or bit_rate in (0, 15) or rate == 3:
        return None
    is_first = version == 3
    sample_rate = RATES[version][rate]
    bits = 1000 * BIT_RATES[is_first, layer][bit_rate - 1]
    padding = word >> 9 & 1
    samples = {1: 384, 2: 1152, 3: 1152 if is_first else 576}[layer]
    slot = 4 if layer == 1 else 1  # bytes
    length = (samples // (8 * slot) * bits // sample_rate + padding) * slot
    channels = 1 if word >> 6 & 3 == 3 else 2
    side = {(True, 2): 32, (True, 1): 17, (False, 2): 17, (False, 1): 9}[is_first, channels]
    return MpegFrame(length, samples, sample_rate, channels, 4 + side)


def first_frame(view: ByteView, start: int, kind: int | None = None, within: int = SEARCH) -> int:
    """Where a frame begins that others of its kind follow (or the end of the file); -1 for nowhere.

    Args:
        kind: the bits of KIND_MASK that it must have.
        within: bytes in which it must begin.
    """
    header = ANY_HEADER if kind is None else header_of_kind(kind)
    end = min(view.size, start + within)
    tries = 0
    while start < end:
        block = view.at(start, min(WINDOW, view.size - start))
        for match in header.finditer(block):
            at = start + match.start()
            tries += 1
            if at >= end or tries > MAX_TRIES:
                return -1
            if is_followed(view, at, kind):
                return at
        start += max(1, len(block) - 3)  # a header may lie across two blocks
    return -1


def header_of_kind(kind: int) -> re.Pattern[bytes]:
    """Matches three bytes that may begin a frame of this kind."""
    seconds = bytes([kind >> 16 & 0xFE, kind >> 16 & 0xFE | 1])
    thirds = bytes(byte for byte in range(0x10, 0xF0) if byte & 0x0C == kind >> 8 & 0x0C)
    return re.compile(b"\xff[" + re.escape(seconds) + b"][" + re.escape(thirds) + b"]")


def is_followed(view: ByteView, at: int, kind: int | None) -> bool:
    """Whether frames of one kind stand here one after another: three; two of a `kind` that is known; or to the end."""
    count = 3 if kind is None else 2
    for number in range(count):
        word = int.from_bytes(view.at(at, 4), "big")
        frame = frame_of(word)
        if frame is None or kind not in (None, word & KIND_MASK):
            return False
        kind = word & KIND_MASK
        at += frame.length
        if at >= view.size:
            return number > 0 or at == view.size
    return True


class FrameScanner:
    """Goes through all frames of a file and sorts them into streams."""

    def __init__(self, view: ByteView, start: int) -> None:
        self.view = view
        self.at = start  # of the first frame
        word = int.from_bytes(view.at(start, 4), "big")
        self.kind = word & KIND_MASK
        self.streams: list[MpegStream] = []
        self.skipped: list[Span] = []  # bytes between frames that are none
        self.known: dict[int, MpegFrame | None] = {}
        self.begin_stream()

    def begin_stream(self) -> None:
        self.spans: list[Span] = []
        self.frames = 0
        self.info: Span | None = None
        self.claimed: int | None = None
        self.first: MpegFrame | None = None  # of the stream, a Xing frame or not
        self.span_start = self.at

    def end_stream(self) -> None:
        self.end_span()
        if self.frames and self.first:
            self.streams.append(
                MpegStream(tuple(self.spans), self.frames, self.first, self.info, self.claimed)
            )

    def end_span(self) -> None:
        if self.at > self.span_start:
            self.spans.append(Span(self.span_start, self.at))

    def scan(self) -> None:
        """To the end of the file."""
        view = self.view
        while True:
            word = int.from_bytes(view.at(self.at, 4), "big")
            frame = None
            if word & KIND_MASK == self.kind:
                frame = self.frame(word)
            if frame is None or self.at + frame.length > view.size:
                if not self.resume():
                    break
                continue
            mark = view.at(self.at + frame.info_offset, 4)
            if mark in (b"Xing", b"Info") or view.at(self.at + 36, 4) == b"VBRI":
                self.take_info(frame, is_xing=mark in (b"Xing", b"Info"))
                continue
            self.first = self.first or frame
            self.frames += 1
            self.at += frame.length
        self.end_stream()

    def frame(self, word: int) -> MpegFrame | None:
        key = word & (LENGTH_MASK | 0xC0)  # 0xC0: the mode, mono or not
        if key not in self.known:
            self.known[key] = frame_of(word)
        return self.known[key]

    def take_info(self, frame: MpegFrame, is_xing: bool) -> None:
        """A frame that describes those after it begins a new stream."""
        if self.frames:
            self.end_stream()
            self.begin_stream()
        self.end_span()
        self.first = frame
        self.span_start = self.at + frame.length
        if is_xing:
            mark = self.view.at(self.at + frame.info_offset, 12)
            self.info = Span(self.at, self.span_start)
            if int.from_bytes(mark[4:8], "big") & XING_FRAMES_FLAG:
                self.claimed = int.from_bytes(mark[8:12], "big")
        self.at += frame.length

    def resume(self) -> bool:
        """Go on behind what is no frame; False at the end."""
        self.end_span()
        found = first_frame(self.view, self.at, self.kind, within=RESYNC)
        stop = found if found >= 0 else self.view.size
        if stop > self.at:
            self.skipped.append(Span(self.at, stop))
        self.at = self.span_start = stop
        return found >= 0


def mpeg_streams(view: ByteView, start: int) -> tuple[list[MpegStream], list[Span]]:
    """The streams from the frame at `start` on, and the bytes between and after their frames."""
    scanner = FrameScanner(view, start)
    scanner.scan()
    return scanner.streams, scanner.skipped


def pieces_of_stream(view: ByteView, stream: MpegStream) -> tuple[Piece, ...]:
    """What a decoder is given: the frames alone, behind a Xing frame that says how many there are, or before padding.

    libmpg123 estimates the number of frames without a Xing frame from the first bit rates, and libsndfile stops there:
    padding makes the estimate large enough, and its reader stops after `stream.length`. A Xing frame of ours would not do:
    libmpg123 would leave out what an encoder is thought to have put before the first frame.

    Raises:
        BadSampleError: there are fewer frames than the stream's own Xing frame says.
    """
    if stream.info is None or stream.claimed is None:
        silence = silent_frame(view, stream)
        return (*stream.frame_spans, Padding(silence, (stream.frames + 1) * LONGEST_FRAME))
    if stream.claimed > stream.frames + XING_TOLERANCE:
        promised = stream.claimed * stream.first.samples
        raise BadSampleError(
            "undecodable",
            f"unreadable: ends after {stream.length} of {promised} promised frames",
        )
    info = bytearray(view.at(stream.info.start, stream.info.stop - stream.info.start))
    at = stream.first.info_offset + 8
    info[at : at + 4] = stream.frames.to_bytes(4, "big")
    return (bytes(info), *stream.frame_spans)


def silent_frame(view: ByteView, stream: MpegStream) -> bytes:
    """A frame of silence in the stream's format: a header, and nothing but zeros."""
    start = stream.frame_spans[0].start
    word = int.from_bytes(view.at(start, 4), "big") | 1 << 16  # no checksum
    frame = frame_of(word)
    assert frame is not None, "was a frame a moment ago"
    return word.to_bytes(4, "big").ljust(frame.length, b"\0")
