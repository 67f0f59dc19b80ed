"""What an audio file says of its song itself: its tags."""

import contextlib
import re
from collections.abc import Mapping
from typing import Any

from megajukebox.common.errors import UserError
from megajukebox.data.ingest.source_song import checked

OF_TAGS = {
    "artist": "artist",
    "album": "album",
    "title": "title",
    "genre": "genres",
    "license": "licence",
}


def metadata_of_tags(tags: Mapping[str, str]) -> dict[str, Any]:
    """The tags of a file (`audio.tags`) as fields of SongMetadata.

    A value that makes no sense is left out: it was not written for us, so it must not cost the
    song.
    """
    values: dict[str, Any] = {name: tags[tag] for tag, name in OF_TAGS.items() if tag in tags}
    if re.fullmatch(r"[\s()\d]*", values.get("genres", "")):  # an ID3v1 genre number
        values.pop("genres", None)
    year = re.search(r"\b\d{4}\b", tags.get("date", ""))
    if year:
        values["year"] = int(year[0])
    metadata: dict[str, Any] = {}
    for name, value in values.items():
        with contextlib.suppress(UserError):
            metadata |= checked({name: value}, "tags")
    return metadata
