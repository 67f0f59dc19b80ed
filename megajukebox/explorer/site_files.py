"""Files of the site: written again only when they are old, and the URLs that lead from one to the other."""

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO
from urllib.parse import quote

from megajukebox.common.errors import UserError
from megajukebox.common.files import atomic_open, create_new, make_folder
from megajukebox.common.untrusted_files import open_inside, parse_json, read_inside

AUDIO_TYPES = {
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
    ".mp3": "audio/mpeg",
}
MAX_SCRIPT_BYTES = 1 << 20  # of the numbers of one recording
SITE_MODE = 0o755  # others may read a site, and none of them may write to it
COPY_BYTES = 1 << 20  # at a time
# Names that can stand in any URL and file system.
SAFE_NAME = r"[A-Za-z0-9_-]{1,48}"
UNSAFE_LETTERS = r"[^A-Za-z0-9_-]+"
READABLE_LETTERS = 32  # of a name that is not safe


@dataclass(frozen=True)
class ContainedFile:
    """A file by its name within a folder that others may write to. No link below `folder` is ever followed."""

    folder: Path
    name: PurePath

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def audio_type(self) -> str | None:
        """Its media type; None for what is no audio by its ending."""
        return AUDIO_TYPES.get(self.name.suffix.lower())

    def reader(self) -> BinaryIO:
        """The file, open for reading.

        Raises:
            OSError: it is gone, goes through a link, or is no regular file.
        """
        return open_inside(self.folder, self.name)

    def is_recording(self) -> bool:
        """Whether it can be opened, and is audio by its ending."""
        try:
            self.reader().close()
        except (OSError, ValueError):  # ValueError: a name that no file can have
            return False
        return self.audio_type is not None


def own_folder(out: Path) -> None:
    """Make the folder of a site that is to be served: what others could write into it would run in the browser.

    Raises:
        UserError: it is somebody else's, or others may write to it.
    """
    make_folder(out, SITE_MODE)
    facts = out.stat()
    if facts.st_uid != os.getuid():
        raise UserError(
            f"the site {str(out)!r} is not a folder of yours; choose another with --out"
        )
    if facts.st_mode & 0o022:
        raise UserError(
            f"others may write to the site {str(out)!r}; `chmod go-w {out}`, or choose another with --out"
        )


def write(path: Path, content: bytes) -> None:
    """Write a file unless it is there already, as it should be: of thousands of pages, few change.

    It appears whole, but is not synced to the disk: a site can be built again, and thousands of syncs take longer than
    everything else.
    """
    try:
        if read_inside(path.parent, path.name, len(content)) == content:
            return
    except OSError:  # not there, of another size, or not a file of ours
        pass
    make_folder(path.parent, SITE_MODE)
    partial = path.with_name(f"{path.name}.partial")
    with create_new(partial, SITE_MODE & 0o666) as file:  # whatever the umask
        file.write(content)
    os.replace(partial, path)


def write_text(path: Path, text: str) -> int:
    """Write a page, and return its bytes. A file name on it may hold bytes that are not text."""
    content = text.encode("utf-8", errors="replace")
    write(path, content)
    return len(content)


def copy(source: ContainedFile, target: Path) -> None:
    """Copy `source` to `target` unless it is there already.

    Raises:
        OSError: `source` is gone, goes through a link, or is no regular file.
    """
    with source.reader() as original:
        facts = os.fstat(original.fileno())
        if up_to_date(target, facts.st_mtime_ns) and target.stat().st_size == facts.st_size:
            return
        make_folder(target.parent, SITE_MODE)
        with atomic_open(target) as file:
            shutil.copyfileobj(original, file, COPY_BYTES)
    stamp(target, facts.st_mtime_ns)


def script(name: str, data: object) -> bytes:
    """A script that hands `data` to the page as `name`.

    Pages opened from disk may load scripts but no JSON. It goes through JSON.parse, which is faster than JavaScript's
    own reading and knows no `__proto__`; ASCII only, so no character of a text can end the string.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return f"take({json.dumps(name)}, {json.dumps(text)});\n".encode("ascii")


def read_script(path: Path) -> Any:
    """The data in a script that `script` wrote.

    Raises:
        OSError: there is none.
        ValueError: it is none of ours.
    """
    content = read_inside(path.parent, path.name, MAX_SCRIPT_BYTES).decode("ascii")
    _, _, text = content.partition(", ")
    return parse_json(parse_json(text.rstrip("\n;").removesuffix(")")))


def stamp(target: Path, time: int) -> None:
    """Give `target` the time (ns) of what it was made from."""
    os.utime(target, ns=(time, time))


def up_to_date(target: Path, time: int) -> bool:
    """Whether `target` was made from what had this time (ns).

    Times must be equal, not only later: a file put back from a backup is older than what its predecessor became.
    """
    return target.exists() and target.stat().st_mtime_ns == time


def relative_url(target: Path, page_folder: Path) -> str:
    """The URL of `target` as written on a page in `page_folder`."""
    return quote(os.fsencode(os.path.relpath(target, page_folder).replace(os.sep, "/")))


def safe_name(name: str) -> str:
    """`name` if it can stand in any URL and file system, or a readable part of it and a hash that keeps it unique."""
    if re.fullmatch(SAFE_NAME, name):
        return name
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
    return f"{re.sub(UNSAFE_LETTERS, '_', name)[:READABLE_LETTERS]}-{digest}"
