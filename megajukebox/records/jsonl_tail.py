"""Follows a .jsonl file that another process writes: only what is new is read, nothing is ever written."""

import json
import os
from pathlib import Path
from typing import Any

LONGEST_LINE = 1 << 20  # bytes; a longer line is no record of ours


class Tail:
    """The records of a file as they come. `lost` counts lines that are not JSON objects."""

    def __init__(self, path: Path) -> None:
        self.path, self.lost = path, 0
        self._identity: tuple[int, int] | None = None
        self._offset, self._rest = 0, b""

    def new(self) -> tuple[list[dict[str, Any]], bool]:
        """Records since the last call, and whether they are of a new file (a resumed run rewrites its metrics)."""
        try:
            with self.path.open("rb") as file:
                facts = os.fstat(file.fileno())
                identity = (facts.st_dev, facts.st_ino)
                again = identity != self._identity or facts.st_size < self._offset
                if again:
                    self._identity, self._offset, self._rest, self.lost = identity, 0, b"", 0
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return [], False
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-LONGEST_LINE:]
        return self._parsed(lines), again

    def _parsed(self, lines: list[bytes]) -> list[dict[str, Any]]:
        records = [parsed(line) for line in lines if line.strip()]
        self.lost += records.count(None)
        return [record for record in records if record is not None]


def parsed(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line, or None."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_object(path: Path, largest: int = LONGEST_LINE) -> dict[str, Any]:
    """The JSON object in a small file; {} where there is none, or while it is being written."""
    try:
        with path.open("rb") as file:
            return parsed(file.read(largest)) or {}
    except OSError:
        return {}
