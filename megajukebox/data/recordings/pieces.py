"""Bytes of a recording: looked at by position, and put together anew for a decoder."""

import os
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

from megajukebox.common.files import FileWindow

WINDOW = 1 << 16  # bytes held at a time


class Span(NamedTuple):
    """The bytes [start, stop) of a file."""

    start: int
    stop: int


class Padding(NamedTuple):
    """`size` bytes that repeat a pattern."""

    pattern: bytes
    size: int


Piece = bytes | Span | Padding


class ByteView:
    """The bytes of an open file by their positions; a window of them is held at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = file.seek(0, os.SEEK_END)
        self.window = b""
        self.window_start = 0

    def at(self, start: int, count: int) -> bytes:
        """`count` bytes from `start` on; fewer where the file ends, none before it begins."""
        if not 0 <= start < self.size:  # by what a header says
            return b""
        offset = start - self.window_start
        if offset < 0 or offset + count > len(self.window):
            self.load(start, max(count, WINDOW))
            offset = 0
        return self.window[offset : offset + count]

    def load(self, start: int, count: int) -> None:
        """Hold `count` bytes from `start` on, or as many as there are."""
        self.file.seek(start)
        parts = []
        while count > 0 and (part := self.file.read(count)):  # a raw file may give less
            parts.append(part)
            count -= len(part)
        self.window = b"".join(parts)
        self.window_start = start

    def find(self, wanted: bytes, start: int) -> int:
        """Where `wanted` stands next, from `start` on; -1 for nowhere."""
        overlap = len(wanted) - 1
        while start + overlap < self.size:
            self.load(start, WINDOW * 16)
            found = self.window.find(wanted)
            if found >= 0:
                return start + found
            start += max(1, len(self.window) - overlap)
        return -1

    def after_zeros(self, start: int, limit: int) -> int:
        """The first byte from `start` on that is not zero, `start + limit` at most."""
        end = min(self.size, start + limit)
        while start < end:
            block = self.at(start, min(WINDOW, end - start))
            stripped = block.lstrip(b"\0")
            if stripped or not block:
                return start + len(block) - len(stripped)
            start += len(block)
        return end


class SplicedFile(FileWindow):
    """Pieces of `file`, and bytes in between, read as one file. Closing it leaves `file` open."""

    def __init__(self, file: BinaryIO, pieces: Sequence[Piece]) -> None:
        self.file = file
        self.parts: list[
            tuple[int, int, Piece]
        ] = []  # start and stop in this file, and what is there
        size = 0
        for piece in pieces:
            self.parts.append((size, size + size_of(piece), piece))
            size += size_of(piece)
        super().__init__(0, size)
        self.part = 0  # the one read last: decoders mostly go forward

    def fill(self, buffer: memoryview) -> int:
        filled = 0
        while filled < len(buffer):
            count = self.fill_from_part(self.position + filled, buffer[filled:])
            if not count:
                break
            filled += count
        return filled

    def fill_from_part(self, position: int, buffer: memoryview) -> int:
        """Bytes from `position` on, of the one part that it lies in, into `buffer`; returns how many."""
        while not self.parts[self.part][0] <= position < self.parts[self.part][1]:
            forward = position >= self.parts[self.part][1]
            self.part += 1 if forward else -1
        start, stop, piece = self.parts[self.part]
        offset = position - start
        count = min(len(buffer), stop - position)
        if isinstance(piece, Span):
            self.file.seek(piece.start + offset)
            data = self.file.read(count)
        elif isinstance(piece, Padding):
            shift = offset % len(piece.pattern)
            repeats = (shift + count) // len(piece.pattern) + 1
            data = (piece.pattern * repeats)[shift : shift + count]
        else:
            data = piece[offset : offset + count]
        buffer[: len(data)] = data
        return len(data)


def size_of(piece: Piece) -> int:
    """Its bytes."""
    if isinstance(piece, Span):
        return piece.stop - piece.start
    return piece.size if isinstance(piece, Padding) else len(piece)
