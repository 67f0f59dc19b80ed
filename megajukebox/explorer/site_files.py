"""Files of the site: written again only when they are old, and the URLs that lead from one to the other."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

from megajukebox.common.files import atomic_open, make_folder

COPY_BYTES = 1 << 20  # at a time
# Names that can stand in any URL and file system.
SAFE_NAME = r"[A-Za-z0-9_-]{1,48}"
UNSAFE_LETTERS = r"[^A-Za-z0-9_-]+"
READABLE_LETTERS = 32  # of a name that is not safe


def write(path: Path, content: bytes) -> None:
    """Write a file unless it is there already, as it should be: of thousands of pages, few change.

    It appears whole, but is not synced to the disk: a site can be built again, and thousands of syncs take longer than
    everything else.
    """
    if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
        return
    make_folder(path.parent)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def write_text(path: Path, text: str) -> int:
    """Write a page, and return its bytes. A file name on it may hold bytes that are not text."""
    content = text.encode("utf-8", errors="replace")
    write(path, content)
    return len(content)


def copy(source: Path, target: Path) -> None:
    """Copy `source` to `target` unless it is there already."""
    if up_to_date(target, source) and target.stat().st_size == source.stat().st_size:
        return
    make_folder(target.parent)
    with source.open("rb") as original, atomic_open(target) as file:
        shutil.copyfileobj(original, file, COPY_BYTES)
    stamp(target, source)


def script(name: str, data: object) -> bytes:
    """A script that hands `data` to the page as `name`.

    Pages opened from disk may load scripts but no JSON. It goes through JSON.parse, which is faster than JavaScript's
    own reading and knows no `__proto__`; ASCII only, so no character of a text can end the string.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return f"take({json.dumps(name)}, {json.dumps(text)});\n".encode("ascii")


def read_script(path: Path) -> Any:
    """The data in a script that `script` wrote."""
    _, _, text = path.read_text().partition(", ")
    return json.loads(json.loads(text.rstrip("\n;").removesuffix(")")))


def stamp(target: Path, source: Path) -> None:
    """Give `target` the time of the `source` that it was made from."""
    time = source.stat().st_mtime_ns
    os.utime(target, ns=(time, time))


def up_to_date(target: Path, source: Path) -> bool:
    """Whether `target` was made from `source` as it is now.

    Times must be equal, not only later: a file put back from a backup is older than what its predecessor became.
    """
    return target.exists() and target.stat().st_mtime_ns == source.stat().st_mtime_ns


def relative_url(target: Path, page_folder: Path) -> str:
    """The URL of `target` as written on a page in `page_folder`."""
    return quote(os.fsencode(os.path.relpath(target, page_folder).replace(os.sep, "/")))


def safe_name(name: str) -> str:
    """`name` if it can stand in any URL and file system, or a readable part of it and a hash that keeps it unique."""
    if re.fullmatch(SAFE_NAME, name):
        return name
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
    return f"{re.sub(UNSAFE_LETTERS, '_', name)[:READABLE_LETTERS]}-{digest}"
