"""How each process of a run ended: exits/rank-00000.json, which outlives the process."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megajukebox.records.jsonl_tail import files_of_ranks, read_named_object, read_object
from megajukebox.records.schema import from_record, is_current

EXITS = "exits"  # folder within a run
VERSION_1_CLASSES = {"peer": "peer_failure", "memory": "out_of_memory", "code": "bug"}


@dataclass(frozen=True)
class ProcessExit:
    """`exit_class` is one of resilience.exit_codes.EXIT_CODES, and fixes `code`."""

    rank: int = -1
    host: str = ""
    code: int | None = None
    exit_class: str = ""
    reason: str = ""
    time: float = 0.0
    generation: int = 0  # number of the start that it took part in, from 1
    traceback: str | None = None  # of a bug


def exit_path(run: Path, rank: int) -> Path:
    return run / EXITS / f"rank-{rank:05d}.json"


def parse_exit(record: Mapping[str, Any]) -> ProcessExit:
    """An exit record of version 1 or 2."""
    if is_current(record):
        return from_record(ProcessExit, record)
    before = str(record.get("class", ""))
    return from_record(
        ProcessExit, dict(record) | {"exit_class": VERSION_1_CLASSES.get(before, before)}
    )


def read_exit(path: Path) -> ProcessExit | None:
    """The record at `path`, which `exit_path` gave; None if there is none."""
    record = read_object(path, folder=path.parent.parent)
    return parse_exit(record) if record else None


def read_exits(run: Path) -> list[ProcessExit]:
    """Of all ranks that left one."""
    exits: list[ProcessExit] = []
    for name in files_of_ranks(run, EXITS):
        record = read_named_object(run, name)
        if record:
            exits.append(parse_exit(record))
    return exits
