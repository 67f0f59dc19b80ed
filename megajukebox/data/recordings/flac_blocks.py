"""What stands before the frames of a FLAC (RFC 9639): how long it says it is, and which speakers it names."""

import re
from dataclasses import dataclass

from megajukebox.data.recordings.channels import Speakers, speakers_of_mask
from megajukebox.data.recordings.pieces import ByteView, Piece, Span

STREAMINFO, VORBIS_COMMENT = 0, 4  # types of metadata blocks
STREAMINFO_BYTES = 34
# Of the file "fLaC" and the block of STREAMINFO follow each other, so a joined one is found by both.
MAGICS = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")
MAX_BLOCKS = 1000
ID3V1_BYTES = 128
APE_FOOTER_BYTES = 32
MAX_COMMENT = 1 << 20  # bytes that are looked through
MASK = re.compile(rb"WAVEFORMATEXTENSIBLE_CHANNEL_MASK=0x([0-9a-fA-F]{1,8})", re.IGNORECASE)
LENGTH_BITS = 36  # of STREAMINFO, for the number of frames
LENGTH_AT = 18  # where the eight bytes with rate, channels, bits and length begin


@dataclass
class FlacLink:
    """One FLAC; a file joined of several has more."""

    pieces: tuple[
        Piece, ...
    ]  # with a length of 0 (not known), so that a decoder goes on to the end
    promised: int | None  # frames that it says
    channels: int
    speakers: Speakers | None


def flac_links(view: ByteView, start: int) -> list[FlacLink]:
    """The FLACs of a file whose first begins at `start`, one after another."""
    links: list[FlacLink] = []
    starts = [start]
    at = frames_start(view, start)
    while at < view.size:
        found = [place for magic in MAGICS if (place := view.find(magic, at)) >= 0]
        if not found:
            break
        starts.append(min(found))
        at = frames_start(view, starts[-1])
    for first, stop in zip(starts, [*starts[1:], view.size]):
        links.append(flac_link(view, first, stop))
    return links


def flac_link(view: ByteView, start: int, stop: int) -> FlacLink:
    stop = before_tags(view, stop)
    facts = int.from_bytes(view.at(start + LENGTH_AT, 8).ljust(8, b"\0"), "big")
    promised = facts & (1 << LENGTH_BITS) - 1
    channels = (facts >> 41 & 7) + 1
    without_length = (facts >> LENGTH_BITS << LENGTH_BITS).to_bytes(8, "big")
    pieces = (
        Span(start, min(stop, start + LENGTH_AT)),
        without_length,
        Span(min(stop, start + LENGTH_AT + 8), stop),
    )
    speakers = named_speakers(view, start, channels) if channels > 1 else None
    return FlacLink(pieces, promised or None, channels, speakers)


def before_tags(view: ByteView, stop: int) -> int:
    """Where an ID3v1 or an APE tag begins that ends at `stop`; `stop` without one."""
    if view.at(stop - ID3V1_BYTES, 3) == b"TAG":
        stop -= ID3V1_BYTES
    footer = view.at(stop - APE_FOOTER_BYTES, APE_FOOTER_BYTES)
    if footer[:8] == b"APETAGEX":
        size = int.from_bytes(footer[12:16], "little")
        has_header = bool(footer[23] & 0x80)
        stop -= min(stop, size + (APE_FOOTER_BYTES if has_header else 0))
    return stop


def blocks(view: ByteView, start: int) -> list[tuple[int, Span]]:
    """(type, content) of every metadata block."""
    found: list[tuple[int, Span]] = []
    at = start + 4
    for _ in range(MAX_BLOCKS):
        header = view.at(at, 4)
        if len(header) < 4:
            break
        size = int.from_bytes(header[1:], "big")
        found.append((header[0] & 0x7F, Span(at + 4, at + 4 + size)))
        at += 4 + size
        if header[0] & 0x80 or at >= view.size:
            break
    return found


def frames_start(view: ByteView, start: int) -> int:
    """Where the first frame begins."""
    return max([start + 4, *(span.stop for _, span in blocks(view, start))])


def named_speakers(view: ByteView, start: int, channels: int) -> Speakers | None:
    """What a WAVEFORMATEXTENSIBLE_CHANNEL_MASK in the comments says (RFC 9639, section 8.6.2)."""
    for kind, span in blocks(view, start):
        if kind == VORBIS_COMMENT:
            match = MASK.search(view.at(span.start, min(MAX_COMMENT, span.stop - span.start)))
            if match:
                return speakers_of_mask(int(match[1], 16), channels)
    return None
