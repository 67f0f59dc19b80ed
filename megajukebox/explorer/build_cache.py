"""What every page was made of, so that it is made again only when that has changed: of thousands, few do."""

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
    """The pages of one kind in the site at `out`: asked for one by one, and remembered when `keep` is called."""

    def __init__(self, out: Path, kind: str) -> None:
        self.out, self.path = out, out / f".{kind}.json"
        self.before = read_object(self.path, MAX_CACHE_BYTES)
        self.now: dict[str, list] = {}

    def page(self, path: Path, inputs: tuple, render: Callable[[], str]) -> None:
        """Write what `render` gives to `path`, unless the page that is there came from equal `inputs`.

        Inputs count by their `repr`. A page of another size than it had is not trusted.
        """
        name, digest = (
            str(path.relative_to(self.out)),
            hashlib.sha256(repr((templates(), inputs)).encode("utf-8", "replace")),
        )
        self.now[name] = self.before.get(name, [])
        if path.is_file() and self.now[name] == [digest.hexdigest(), path.stat().st_size]:
            return
        content = render().encode(
            "utf-8", errors="replace"
        )  # a file name may hold bytes that are not text
        site_files.write(path, content)
        self.now[name] = [digest.hexdigest(), len(content)]

    def keep(self) -> None:
        if self.now != self.before:
            make_folder(self.out)
            write_atomic(self.path, json.dumps(self.now).encode())


@cache
def templates() -> str:
    """One name for this very version of the code that makes pages."""
    sources = sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.html")])
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
