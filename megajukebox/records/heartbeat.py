"""What a process of a run last reported of itself: heartbeats/rank-00000.json, renewed every few seconds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megajukebox.records.jsonl_tail import files_of_ranks, read_named_object
from megajukebox.records.phases import upgrade_phase
from megajukebox.records.schema import from_record, is_current, renamed

HEARTBEATS = "heartbeats"  # folder within a run
VERSION_1 = {"section": "phase", "section_since": "phase_since"}


@dataclass(frozen=True)
class Heartbeat:
    """Times are seconds since 1970, durations seconds; those of a step are medians of the last fifty."""

    rank: int = -1
    host: str = ""
    time: float = 0.0
    step: int = 0  # optimizer steps made
    phase: str = ""  # one of records.phases.PHASES
    phase_since: float = 0.0
    pid: int | None = None
    generation: int | None = None  # number of the start, from 1
    step_seconds: float | None = None  # of the last step
    own_seconds: float | None = None  # of a step, without the time spent waiting for other ranks
    communication_seconds: float | None = None  # of a step in collectives, waits included
    stage: int = 0  # of a pipeline: only ranks of the same one have equal work


def heartbeat_path(run: Path, rank: int) -> Path:
    return run / HEARTBEATS / f"rank-{rank:05d}.json"


def parse_heartbeat(record: Mapping[str, Any]) -> Heartbeat | None:
    """A heartbeat of version 1 or 2; None without a rank and a time."""
    current = dict(record) if is_current(record) else renamed(record, VERSION_1)
    beat = from_record(Heartbeat, current)
    if beat.rank < 0 or not beat.time:
        return None
    if is_current(record):
        return beat
    return from_record(Heartbeat, current | {"phase": upgrade_phase(beat.phase)})


def read_heartbeats(run: Path, generation: int | None = None) -> list[Heartbeat]:
    """The last heartbeats of all ranks, of one generation if it is given; unreadable ones are left out."""
    beats: list[Heartbeat] = []
    for name in files_of_ranks(run, HEARTBEATS):
        beat = parse_heartbeat(read_named_object(run, name))
        if beat is not None and generation in (None, beat.generation):
            beats.append(beat)
    return beats
