"""How far sampling has come, in a file that another program may read at any moment."""

import json
import time
from pathlib import Path

from megajukebox.common.files import write_atomic

EVERY = 0.5  # seconds between two writings


class ProgressFile:
    """Keeps {"done": {level: codes}, "total": {level: codes}} at `path`; None keeps nothing."""

    def __init__(self, path: Path | None, total: dict[str, int]) -> None:
        self.path, self.total = path, total
        self.done = dict.fromkeys(total, 0)
        self.written = 0.0
        self.write()

    def advance(self, level: str, count: int) -> None:
        self.done[level] += count
        if time.monotonic() > self.written + EVERY or self.done == self.total:
            self.write()

    def write(self) -> None:
        if self.path:
            write_atomic(self.path, json.dumps({"done": self.done, "total": self.total}).encode())
        self.written = time.monotonic()
