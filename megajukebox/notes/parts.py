"""What reading a file gives, and parts put together where a file has more of them than a piece may have."""

from typing import NamedTuple

from megajukebox.notes.instruments import ScorePart
from megajukebox.notes.notes import MAX_PARTS, Notes

MAX_OFF_GRID = 0.25  # ticks by which an onset may miss the clock before it counts as off the grid


class ReadPiece(NamedTuple):
    """A piece of a file, and what was repaired in reading it."""

    notes: Notes | None  # None: it cannot be read, and `repairs` says why
    repairs: tuple[str, ...]  # "3 notes without an end"
    name: str = ""  # of the piece within its file; empty: the only one


def merge_parts(parts: list[ScorePart]) -> tuple[tuple[ScorePart, ...], list[int]]:
    """(at most MAX_PARTS parts, the new number of each). Those that are too many join one of their family.

    What has no family among the first joins the last part.
    """
    if len(parts) <= MAX_PARTS:
        return tuple(parts), list(range(len(parts)))
    kept: list[ScorePart] = []
    numbers = []
    families = {part.family for part in parts}
    for part in parts:
        same = [number for number, other in enumerate(kept) if other.family == part.family]
        families_to_come = families - {other.family for other in kept}
        room = MAX_PARTS - len(kept) - len(families_to_come - {part.family})
        if not same or room > 0:
            kept.append(part)
            numbers.append(min(len(kept), MAX_PARTS) - 1)
        else:
            numbers.append(same[0])
    return tuple(kept[:MAX_PARTS]), [min(number, MAX_PARTS - 1) for number in numbers]
