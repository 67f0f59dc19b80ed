"""Names of artists and genres as OpenAI's Jukebox writes and numbers them (label versions v2 and v3)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import read_given
from megajukebox.conditioning.vocabulary import UNKNOWN, Vocabulary

MAX_LABEL_BYTES = 1 << 26
Version = Literal["v2", "v3"]


def jukebox_name(name: str, version: Version) -> str:
    """A name as the label files have it: v2 keeps a-z and 0-9 and joins them by one `_`, v3 only lowers the case."""
    if version == "v3":
        return name.lower()
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def jukebox_genres(genres: str, version: Version) -> list[str]:
    """The genres that a text names: v2 takes every word for one of the bag, v3 the whole for one."""
    name = jukebox_name(genres, version)
    return list(filter(None, name.split("_"))) if version == "v2" else [name]


def as_written(style: str | None, condition: str, name: str) -> list[str]:
    """A name as the vocabularies of a run have it: the `names` of its model.json are None, jukebox_v2 or jukebox_v3.

    Of a genre in v2 every word. What v2 cannot spell at all (it knows only a-z) stays as it is.
    """
    if style is None:
        return [name]
    version: Version = "v2" if style == "jukebox_v2" else "v3"
    spelt = [jukebox_name(name, version)]
    if condition == "genres":
        spelt = jukebox_genres(name, version)
    return list(filter(None, spelt)) or [name]


def read_label_file(path: Path, size: int) -> Vocabulary:
    """A file of lines `name;id` as the vocabulary of a table with `size` rows.

    Id 0 is "unknown" there too. A row that no line names gets a name nobody asks for; of two lines with one id the
    first counts. UserError names a line that is not of this form, or whose id is outside the table.
    """
    names: dict[int, str] = {}
    lines = read_given(path, MAX_LABEL_BYTES).decode().splitlines()
    for number, line in enumerate(lines, start=1):
        name, _, text = line.rpartition(";")
        if not line.strip():
            continue
        if not name or not text.strip().isdigit() or int(text) >= size:
            raise UserError(
                f"{path}, line {number}: {line!r} is not `name;id` with an id below {size}"
            )
        names.setdefault(int(text), name)
    return rows_as_vocabulary(names, size)


def rows_as_vocabulary(names: Mapping[int, str], size: int) -> Vocabulary:
    """The vocabulary of a table with `size` rows of which some are named.

    Row 0 is "unknown"; a row without a name, or with that of an earlier one, gets a name nobody asks for.
    """
    entries = [UNKNOWN]
    seen = {UNKNOWN}
    for row in range(1, size):
        name = names.get(row, f"<row {row}>")
        entries.append(f"<row {row}>" if name in seen else name)
        seen.add(name)
    return Vocabulary(tuple(entries))
