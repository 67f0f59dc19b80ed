"""Files of one JSON object a line, that another process may be writing: read whole, or only what is new."""

import json
import os
from pathlib import Path
from typing import Any

MAX_LINE_BYTES = 1 << 20  # a longer line is no record of ours


class Tail:
    """The records of a file as they come. `lost` counts lines that are not JSON objects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0
        self._identity: tuple[int, int] | None = None
        self._offset = 0
        self._cut_line = b""

    def new(self) -> tuple[list[dict[str, Any]], bool]:
        """Records since the last call, and whether they are of a new file (a resumed run rewrites its metrics)."""
        try:
            with self.path.open("rb") as file:
                facts = os.fstat(file.fileno())
                identity = (facts.st_dev, facts.st_ino)
                replaced = identity != self._identity or facts.st_size < self._offset
                if replaced:
                    self._identity = identity
                    self._offset = 0
                    self._cut_line = b""
                    self.lost = 0
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return [], False
        self._offset += len(data)
        *lines, cut = (self._cut_line + data).split(b"\n")
        self._cut_line = cut[-MAX_LINE_BYTES:]
        records: list[dict[str, Any]] = []
        for line in filter(bytes.strip, lines):
            record = parsed(line)
            if record is None:
                self.lost += 1
            else:
                records.append(record)
        return records, replaced


def parsed(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line, or None."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_lines(path: Path, skipped: tuple[bytes, ...] = ()) -> list[dict[str, Any]]:
    """The records of a .jsonl file; lines that a crash cut are left out, and those with one of `skipped` in them."""
    if not path.exists():
        return []
    records: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines():
        if any(part in line for part in skipped):
            continue
        record = parsed(line)
        if record is not None:
            records.append(record)
    return records


def read_object(path: Path, max_bytes: int = MAX_LINE_BYTES) -> dict[str, Any]:
    """The JSON object in a small file; {} where there is none, or while it is being written."""
    try:
        with path.open("rb") as file:
            return parsed(file.read(max_bytes)) or {}
    except OSError:
        return {}
