"""An Ogg file is a chain of links (RFC 3533): each has streams of its own, its own length, its own first pages.

|first page of each stream| page | page | ... | last page |   |first page ...        the next link
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from megajukebox.data.recordings.pieces import ByteView, Span

HEADER = 27  # bytes of a page before its table of segments
FIRST, LAST = 2, 4  # flags of a page: the first, and the last, of its stream
RESYNC = 1 << 20  # bytes that may lie between two pages
# The first bytes of a stream: what it is, and whether it is sound.
CODECS = {
    b"\x01vorbis": "Vorbis",
    b"OpusHead": "Opus",
    b"\x7fFLAC": "FLAC",
    b"Speex   ": "Speex",
}


class OggPage(NamedTuple):
    """One page: where it lies, and what its header says."""

    span: Span
    flags: int
    serial: int  # the stream that it belongs to
    number: int  # counted in its stream


@dataclass
class OggStream:
    """The pages of one stream."""

    codec: str | None  # one of CODECS; None: no sound
    spans: list[Span] = field(default_factory=list)
    last_number: int = -1
    gaps: int = 0  # places where pages are missing
    ended: bool = False

    def add(self, page: OggPage) -> None:
        if self.spans and page.number != self.last_number + 1:
            self.gaps += 1
        self.last_number = page.number
        self.ended = self.ended or bool(page.flags & LAST)
        if self.spans and self.spans[-1].stop == page.span.start:
            self.spans[-1] = Span(self.spans[-1].start, page.span.stop)
        else:
            self.spans.append(page.span)


class OggLink(NamedTuple):
    """What begins with the first pages of its streams."""

    streams: dict[int, OggStream]

    @property
    def sound(self) -> OggStream | None:
        """Its first stream of sound."""
        return next((stream for stream in self.streams.values() if stream.codec), None)


def pages(view: ByteView, start: int) -> Iterator[OggPage]:
    """Every whole page from `start` on; what lies between is passed over."""
    while start + HEADER <= view.size:
        header = view.at(start, HEADER + 255)
        if header[:4] != b"OggS":
            found = view.at(start, RESYNC).find(b"OggS")
            if found < 0:
                return
            start += found
            continue
        table = header[HEADER : HEADER + header[26]]
        stop = start + HEADER + len(table) + sum(table)
        if stop > view.size:
            return
        yield OggPage(
            Span(start, stop),
            header[5],
            int.from_bytes(header[14:18], "little"),
            int.from_bytes(header[18:22], "little"),
        )
        start = stop


def ogg_links(view: ByteView, start: int) -> list[OggLink]:
    """The links of the file whose first page is at `start`."""
    links: list[OggLink] = []
    is_opening = False  # the page before was the first of a stream
    for page in pages(view, start):
        if page.flags & FIRST:
            if not is_opening:
                links.append(OggLink({}))
            links[-1].streams[page.serial] = OggStream(codec_of(view, page.span))
        is_opening = bool(page.flags & FIRST)
        if links and page.serial in links[-1].streams:
            links[-1].streams[page.serial].add(page)
    return links


def codec_of(view: ByteView, page: Span) -> str | None:
    """Which of CODECS begins on this page."""
    header = view.at(page.start, HEADER + 255 + 8)
    packet = header[HEADER + header[26] :]
    return next((name for mark, name in CODECS.items() if packet.startswith(mark)), None)
