"""Files of one JSON object a line, that another process may be writing: read whole, or only what is new.

No link is followed, no pipe waited for (common/untrusted_files.py), and what is kept in memory has a limit.
"""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from megajukebox.common.untrusted_files import (
    MAX_DEPTH,
    UnsafeFileError,
    open_inside,
    parse_json,
    read_all,
)

MAX_OBJECT_BYTES = 1 << 20  # of a file that holds one object
MAX_LINE_BYTES = 1 << 16  # a longer line is no record of ours: 25 kB for the losses of 512 ranks
# Of a file that is read whole: twice the metrics of a month that were logged at every step.
MAX_LINES_BYTES = 1 << 29
MAX_LINES = 2_000_000
MAX_RANKS = 1 << 14  # whose files are read: a shared folder may hold any number
BLOCK_BYTES = 1 << 20
# What one look at a growing file takes; the rest is for the next. Rows of a month are 10 MB.
MAX_LOOK_BYTES = 64 << 20
MAX_LOOK_LINES = 250_000


class Tail:
    """The records of a file as they come.

    `lost` counts lines that are not JSON objects. After a look `problem` says why the file could not be opened, if it
    is there, and `unread` how many bytes are left for the next look.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0
        self.problem = ""
        self.unread = 0
        self._identity: tuple[int, int] | None = None
        self._offset = 0
        self._cut_line = b""

    def new(self) -> tuple[Iterator[dict[str, Any]], bool]:
        """Records since the last call, and whether they are of a new file (a resumed run rewrites its metrics).

        The file is read while they are taken, up to MAX_LOOK_BYTES of it.
        """
        self.problem = ""
        self.unread = 0
        try:
            file = open_inside(self.path.parent, self.path.name)
        except FileNotFoundError:
            return iter(()), False
        except OSError as error:
            self.problem = f"{self.path.name}: {error.strerror}"
            return iter(()), False
        facts = os.fstat(file.fileno())
        identity = (facts.st_dev, facts.st_ino)
        replaced = identity != self._identity or facts.st_size < self._offset
        if replaced:
            self._identity = identity
            self._offset = 0
            self._cut_line = b""
            self.lost = 0
        return self._records(file, facts.st_size), replaced

    def _records(self, file: BinaryIO, size: int) -> Iterator[dict[str, Any]]:
        end = min(size, self._offset + MAX_LOOK_BYTES)
        lines = 0
        with file:
            file.seek(self._offset)
            while self._offset < end and lines < MAX_LOOK_LINES:
                data = file.read(min(BLOCK_BYTES, end - self._offset))
                if not data:
                    break
                self._offset += len(data)
                *whole, cut = (self._cut_line + data).split(b"\n")
                self._cut_line = cut[-MAX_LINE_BYTES:]
                lines += len(whole)
                for line in filter(bytes.strip, whole):
                    record = parsed(line) if len(line) <= MAX_LINE_BYTES else None
                    if record is None:
                        self.lost += 1
                    else:
                        yield record
        self.unread = max(0, size - self._offset)


def parsed(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line, or None."""
    try:
        # A run's metrics are millions of flat lines: the slower parser is for those that may be deep.
        deep = line.count(b"{") + line.count(b"[") > MAX_DEPTH
        value = parse_json(line) if deep else json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def read_lines(path: Path, skipped: tuple[bytes, ...] = ()) -> list[dict[str, Any]]:
    """The records of a .jsonl file; lines that a crash cut are left out, and those with one of `skipped` in them.

    Raises:
        UnsafeFileError: it is a link, no regular file, or too large; see `lines_of`.
    """
    records: list[dict[str, Any]] = []
    for line in lines_of(path):
        if any(part in line for part in skipped):
            continue
        record = parsed(line)
        if record is not None:
            records.append(record)
    return records


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file that are not empty, one after another; none where it does not exist.

    Raises:
        UnsafeFileError: it is a link or no regular file, or has more than MAX_LINES_BYTES or MAX_LINES.
    """
    try:
        file = open_inside(path.parent, path.name)
    except FileNotFoundError:
        return
    bytes_read = 0
    lines = 0
    with file:
        while line := file.readline(BLOCK_BYTES):
            bytes_read += len(line)
            lines += 1
            if bytes_read > MAX_LINES_BYTES or lines > MAX_LINES:
                reason = f"has more than {MAX_LINES_BYTES:,} bytes or {MAX_LINES:,} lines"
                raise UnsafeFileError(errno.EFBIG, reason, str(path))
            if line.strip():
                yield line


def read_object(
    path: Path, max_bytes: int = MAX_OBJECT_BYTES, folder: Path | None = None
) -> dict[str, Any]:
    """The JSON object in a small file; {} where there is none, or while it is being written.

    No link is followed below `folder`, which is the file's own by default.
    """
    inside = folder or path.parent
    return read_named_object(inside, os.fspath(path.relative_to(inside)), max_bytes)


def read_named_object(folder: Path, name: str, max_bytes: int = MAX_OBJECT_BYTES) -> dict[str, Any]:
    """The same of a file by its name within `folder`; no link below that is followed."""
    try:
        return parsed(read_all(open_inside(folder, name), max_bytes)) or {}
    except OSError:
        return {}


def files_of_ranks(run: Path, folder: str) -> list[str]:
    """The names within `run` of what its ranks left in `folder` of it, in order, MAX_RANKS at most."""
    try:
        names = os.listdir(run / folder)
    except OSError:
        return []
    of_ranks = (name for name in names if name.startswith("rank-") and name.endswith(".json"))
    return [f"{folder}/{name}" for name in sorted(of_ranks)[:MAX_RANKS]]
