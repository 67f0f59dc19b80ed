"""Which stretches of songs sounded before, a file beside each song shard: `sections` writes it, `encode` and `explore` read it.

songs-000012.returns.json
{"schema": 2, "shard": "songs-000012.tar", "sha256": "...", "threshold": 0.9, "songs": {"a-1f": [[40.1, 52.0, 12.4]]}}
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from megajukebox.common.errors import UserError
from megajukebox.common.files import write_atomic
from megajukebox.common.untrusted_files import parse_json, read_given
from megajukebox.records.schema import SCHEMA

SUFFIX = ".returns.json"
MAX_BYTES = 1 << 28


class FoundReturns(NamedTuple):
    """What self-similarity found in the songs of one shard."""

    sha256: str  # of the shard's tar
    threshold: float
    songs: dict[str, list[list[float]]]  # key -> [start, end, earlier start] in seconds

    @property
    def digest(self) -> str:
        """Changes with what was found: code shards that were made from it say so."""
        return hashlib.sha256(json.dumps(self.songs, sort_keys=True).encode()).hexdigest()


def returns_path(folder: Path, shard: str) -> Path:
    """The file beside the tar of that name."""
    return folder / (shard.removesuffix(".tar") + SUFFIX)


def write_returns(folder: Path, shard: str, found: FoundReturns) -> None:
    """Write what was found in a shard, whole or not at all."""
    record = {
        "schema": SCHEMA,
        "shard": shard,
        "sha256": found.sha256,
        "threshold": found.threshold,
        "songs": found.songs,
    }
    write_atomic(returns_path(folder, shard), (json.dumps(record) + "\n").encode())


def read_returns(folder: Path, shard: Mapping[str, Any]) -> FoundReturns | None:
    """What was found in a shard (an entry of index.json); None where nothing was looked for, or in another tar.

    Raises:
        UserError: the file is damaged; it is named, with the way out.
    """
    path = returns_path(folder, shard["name"])
    if not path.is_file():
        return None
    try:
        record = parse_json(read_given(path, MAX_BYTES))
        found = FoundReturns(record["sha256"], float(record["threshold"]), record["songs"])
        for triples in found.songs.values():
            for start, end, earlier in triples:
                if not 0 <= earlier < start < end < math.inf:
                    raise ValueError(f"{[start, end, earlier]} is no return")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it and run megajukebox sections again"
        ) from None
    return found if found.sha256 == shard["sha256"] else None
