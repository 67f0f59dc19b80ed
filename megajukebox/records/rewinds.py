"""Where a run was set back: rewinds.json in the run folder, which every later start reads."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from megajukebox.common.files import write_atomic
from megajukebox.common.untrusted_files import parse_json, read_inside
from megajukebox.records.schema import SCHEMA

REWINDS_FILE = "rewinds.json"
VERSION_1_FILE = "jumps.json"


@dataclass(frozen=True)
class Rewind:
    """From step `step` (0-based) on, training reads the data of `steps` steps later, at `rate` times the rate."""

    step: int
    steps: int
    rate: float = 1.0


def read_rewinds(run: Path) -> list[Rewind]:
    """All rewinds of a run, the first one first.

    Raises:
        ValueError: the file is not what `write_rewinds` writes. It fixes the data that is read, so nothing is guessed.
    """
    name = REWINDS_FILE if (run / REWINDS_FILE).exists() else VERSION_1_FILE
    if not (run / name).exists():
        return []
    content = parse_json(read_inside(run, name))
    listed = content["rewinds"] if isinstance(content, dict) else content  # version 1 is a list
    return [Rewind(**rewind) for rewind in listed]


def write_rewinds(run: Path, rewinds: list[Rewind]) -> None:
    """All rewinds of a run, the first one first; the file is replaced."""
    content = {"schema": SCHEMA, "rewinds": list(map(asdict, rewinds))}
    write_atomic(run / REWINDS_FILE, json.dumps(content).encode())
