"""Which collective a hung run waits in, and which ranks did not come: from torch's flight recorder of every rank.

    python -m megajukebox.resilience.flight_recorder runs/top_prior      # what the dumps of the last hang say

torch keeps the last collectives of a process in a ring (TORCH_FR_BUFFER_SIZE of them). When a rank hangs its watchdog
writes them, as JSON, beside its stacks; NCCL's own watchdog, which waits an hour, writes a pickle. Both are read here
without running anything that is in them.
"""

import io
import json
import pickle
import pickletools
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from megajukebox.common.plain_text import plain
from megajukebox.common.untrusted_files import PlainUnpickler, parse_json, read_inside
from megajukebox.records.jsonl_tail import read_object
from megajukebox.records.productive_time import number
from megajukebox.resilience.fencing import FILE

NCCL_PREFIX = "nccl-rank-"  # of the files that torch writes itself
MAX_DUMP_BYTES = 16 << 20  # 2,000 collectives take 2 MB
MEMO_INSTRUCTIONS = ("PUT", "BINPUT", "LONG_BINPUT")
WORLD = "default_pg"  # torch's description of the group of all ranks
COALESCED = "coalesced"  # several calls in one launch; ranks may name them differently


class RecordedCollective(NamedTuple):
    """A collective that a rank has called, in one process group."""

    sequence: int  # from 1, the same on all ranks of the group
    name: str  # all_reduce, _allgather_base, ...
    sizes: str  # of what goes in and its type
    is_done: bool


class RankDump(NamedTuple):
    """What one rank's recorder held: collectives by (name, description) of their group, in order."""

    rank: int
    groups: dict[tuple[str, str], list[RecordedCollective]]
    members: dict[str, list[int]]  # ranks of a group, where torch tells (NCCL)


@dataclass(frozen=True)
class StuckCollective:
    """A collective that some ranks of its group wait in, and that others have not called, or as another one."""

    group: str
    sequence: int
    collective: str  # as most of those that came call it
    sizes: str
    came: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    differing: dict[int, str] = field(default_factory=dict)  # what else a rank called in its place

    def __str__(self) -> str:
        total = len(self.came) + len(self.missing) + len(self.differing)
        parts = [
            f"{self.collective} of {self.sizes or 'nothing'}, number {self.sequence} of {self.group}"
        ]
        if self.missing:
            parts.append(f"{len(self.missing)} of {total} ranks did not come: {some(self.missing)}")
        for rank, other in sorted(self.differing.items()):
            parts.append(f"rank {rank} called {other} instead")
        if not self.missing and not self.differing:
            parts.append(f"all {total} ranks came: look at the network")
        return "; ".join(parts)


def some(ranks: Sequence[int], most: int = 16) -> str:
    return ", ".join(map(str, ranks[:most])) + (" ..." if len(ranks) > most else "")


def dump_path(run: Path, generation: int, rank: int) -> Path:
    return run / "hangs" / f"generation-{generation:04d}-rank-{rank:05d}.collectives.json"


# ---- Reading ----------------------------------------------------------------------------------------------------------


def parse_dump(data: bytes, rank: int) -> RankDump:
    """What torch wrote, as JSON or as a pickle.

    Raises:
        ValueError: it is neither, or something else than a dump.
    """
    try:
        raw = parse_json(data) if data[:1] == b"{" else unpickled(data)
        groups: dict[tuple[str, str], list[RecordedCollective]] = defaultdict(list)
        for entry in raw.get("entries", []):
            if not entry["is_p2p"]:
                name, description = entry["process_group"]
                groups[(str(name), str(description))].append(parse_entry(entry))
        members = {}
        for facts in raw.get("pg_config", {}).values():
            ranks = facts.get("ranks", "")
            listed = re.findall(r"\d+", ranks if isinstance(ranks, str) else json.dumps(ranks))
            if listed:
                members[str(facts.get("name", ""))] = [int(number) for number in listed]
    except Exception as error:  # whatever it is: a watchdog must not end by a dump
        raise ValueError(f"no dump of a flight recorder: {type(error).__name__} {error}") from None
    return RankDump(rank, dict(groups), members)


def unpickled(data: bytes) -> Any:
    """What a pickle of plain values holds. A few bytes that ask for gigabytes are refused, too.

    Raises:
        ValueError, pickle.UnpicklingError and others: it is no pickle, or one of more than plain values.
    """
    for instruction, argument, _ in pickletools.genops(data):
        too_high = instruction.name in MEMO_INSTRUCTIONS and int(argument or 0) > len(data)
        if too_high or instruction.name == "BYTEARRAY8":
            raise pickle.UnpicklingError(f"has {instruction.name} {argument!r:.40}")
    return PlainUnpickler(io.BytesIO(data)).load()


def parse_entry(entry: Mapping[str, Any]) -> RecordedCollective:
    sizes = []
    for shape, dtype in zip(entry["input_sizes"], entry["input_dtypes"]):
        sizes.append(f"{list(shape)} {dtype}")
    return RecordedCollective(
        sequence=int(entry["collective_seq_id"]),
        name=str(entry["profiling_name"]).rpartition(":")[2],
        sizes=", ".join(sizes),
        is_done=bool(entry["retired"]) or entry["state"] == "completed",
    )


def read_dumps(run: Path, generation: int) -> list[RankDump]:
    """The dumps of one start of a run, by rank; files that cannot be read are left out.

    NCCL's own have no number of a start: they count if they are no older than that start.
    """
    began = number(read_object(run / FILE).get("time")) or 0.0
    dumps: dict[int, RankDump] = {}
    for path in sorted((run / "hangs").glob("*")):  # ours come before NCCL's
        own = re.fullmatch(rf"generation-{generation:04d}-rank-(\d+)\.collectives\.json", path.name)
        nccl = re.fullmatch(rf"{NCCL_PREFIX}(\d+)", path.name)
        matched = own or nccl
        if not matched or int(matched[1]) in dumps:
            continue
        with suppress(OSError, ValueError):
            if nccl and path.lstat().st_mtime < began:
                continue
            dumps[int(matched[1])] = parse_dump(
                read_inside(path.parent, path.name, MAX_DUMP_BYTES), int(matched[1])
            )
    return [dumps[rank] for rank in sorted(dumps)]


# ---- Analysis ---------------------------------------------------------------------------------------------------------


def stuck_collectives(dumps: Sequence[RankDump], ranks: int) -> list[StuckCollective]:
    """In every process group the first collective that is not done, the one most ranks wait in first.

    A rank without a dump has not come: it was too far gone to write one.

    Args:
        ranks: how many the run has; the group of all has all of them.
    """
    stuck = []
    names = {name for dump in dumps for name in dump.groups}
    for name in sorted(names):
        found = stuck_in_group(name, dumps, ranks)
        if found:
            stuck.append(found)
    return sorted(stuck, key=lambda one: -len(one.came))


def stuck_in_group(
    group: tuple[str, str], dumps: Sequence[RankDump], ranks: int
) -> StuckCollective | None:
    """The first collective of `group` that some rank waits in; None if all that were called are done."""
    called = {dump.rank: dump.groups[group] for dump in dumps if group in dump.groups}
    waiting = []
    for collectives in called.values():
        waiting += [one.sequence for one in collectives if not one.is_done]
    if not waiting:
        return None
    sequence = min(waiting)
    came: dict[int, RecordedCollective] = {}
    for rank, collectives in called.items():
        at_it = [one for one in collectives if one.sequence == sequence]
        if at_it:
            came[rank] = at_it[-1]
        elif collectives[-1].sequence > sequence:  # long past it: the ring has lost it
            came[rank] = collectives[-1]._replace(name=COALESCED)
    usual = Counter(one.name for one in came.values() if one.name != COALESCED).most_common(1)
    name = usual[0][0] if usual else COALESCED
    alike = [rank for rank, one in came.items() if one.name in (name, COALESCED)]
    members = members_of(group, dumps, ranks)
    return StuckCollective(
        group=group[1] if group[1] not in ("", "undefined") else f"group {group[0]}",
        sequence=sequence,
        collective=name,
        sizes=next((one.sizes for one in came.values() if one.name == name), ""),
        came=sorted(alike),
        missing=[rank for rank in members if rank not in came],
        differing={
            rank: f"{one.name} of {one.sizes}" for rank, one in came.items() if rank not in alike
        },
    )


def members_of(group: tuple[str, str], dumps: Sequence[RankDump], ranks: int) -> list[int]:
    """Ranks of a process group: as torch tells, else all for the default one, else those that used it."""
    for dump in dumps:
        if group[0] in dump.members:
            return dump.members[group[0]]
    if group[1] == WORLD:
        return list(range(ranks))
    return sorted(dump.rank for dump in dumps if group in dump.groups)


def main() -> None:
    """Print what the dumps of a run's newest hang say."""
    run = Path(sys.argv[1])
    numbers = []
    for path in run.glob("hangs/generation-*"):
        matched = re.match(r"generation-(\d+)", path.name)
        numbers += [int(matched[1])] if matched else []
    if not numbers:
        raise SystemExit(f"{run} has no hangs/: no rank has hung")
    generation = max(numbers)
    dumps = read_dumps(run, generation)
    ranks = max((dump.rank for dump in dumps), default=-1) + 1
    print(f"start {generation}: dumps of {len(dumps)} ranks")
    for stuck in stuck_collectives(dumps, int(sys.argv[2]) if len(sys.argv) > 2 else ranks):
        print(plain(str(stuck)))


if __name__ == "__main__":
    main()
