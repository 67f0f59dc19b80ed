"""What every page was built from, so that it is rendered again only when that has changed: of thousands, few do."""

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

from megajukebox.common.files import make_folder, write_atomic
from megajukebox.explorer import site_files
from megajukebox.records.jsonl_tail import read_object

PACKAGE = Path(__file__).parent
MAX_CACHE_BYTES = 1 << 30


class BuildCache:
    """The pages of one kind in the site at `out`; `save` writes down what they were built from."""

    def __init__(self, out: Path, kind: str) -> None:
        self.out = out
        self.path = out / f".{kind}.json"
        self.before = read_object(self.path, MAX_CACHE_BYTES)
        self.now: dict[str, list] = {}  # page -> [digest of its inputs, bytes]

    def page(self, path: Path, inputs: tuple, render: Callable[[], str]) -> None:
        """Write what `render` returns to `path`, unless the page that is there was built from equal `inputs`.

        Inputs count by their `repr`. A page of another size than it had is not trusted.
        """
        name = str(path.relative_to(self.out))
        text = repr((renderer_version(), inputs))
        digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        self.now[name] = self.before.get(name, [])
        if path.is_file() and self.now[name] == [digest, path.stat().st_size]:
            return
        size = site_files.write_text(path, render())
        self.now[name] = [digest, size]

    def save(self) -> None:
        if self.now != self.before:
            make_folder(self.out)
            write_atomic(self.path, json.dumps(self.now).encode())


@cache
def renderer_version() -> str:
    """A digest of the code and the templates that pages are rendered with."""
    sources = sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.html")])
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
