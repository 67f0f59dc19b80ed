"""Votes of the blind test: kept in a file that only grows, counted with confidence intervals."""

import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

Z95 = 1.959964  # of the normal distribution, two-sided 95 %
OTHER_SIDE = {"a": "b", "b": "a", "same": "same"}


class Vote(BaseModel):
    """One line of the file: what was compared, which samples were played, which side was preferred."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    field: str  # what the two sides differ in: run, checkpoint, sampler ...
    a: str  # the value of the side that is called a when votes are counted, wherever it was played
    b: str
    sample_a: str
    sample_b: str
    winner: Literal["a", "b", "same"]
    first: Literal["a", "b"]  # which of them the listener knew as A
    time: float


@dataclass(frozen=True)
class VoteTally:
    """All votes on one question. `share` is how often b won, a vote for neither counted as half; its 95 % interval."""

    field: str
    a: str
    b: str
    wins_a: int
    wins_b: int
    same: int
    share: float
    low: float
    high: float
    p: float  # of a split at least this uneven if nobody could hear a difference: sign test, two-sided

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "votes": self.wins_a + self.wins_b + self.same}


def append_vote(path: Path, vote: Vote) -> None:
    """Add one line, and sync it to the disk before this returns.

    A line that a crash cut off stays alone: the next one begins on a line of its own. Two servers may keep one file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")), path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(vote.model_dump_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_votes(path: Path) -> tuple[list[Vote], int]:
    """The votes of a file, and how many of its lines are none."""
    if not path.exists():
        return [], 0
    votes = []
    skipped = 0
    for line in path.read_bytes().splitlines():
        try:
            votes.append(Vote.model_validate_json(line))
        except ValidationError:
            skipped += bool(line.strip())
    return votes, skipped


def tally_votes(votes: Iterable[Vote]) -> list[VoteTally]:
    """One tally for every two sides that were compared, in whichever order they were chosen."""
    counts: dict[tuple[str, str, str], Counter[str]] = {}
    for vote in votes:
        swapped = vote.a > vote.b
        question = (vote.field, vote.b, vote.a) if swapped else (vote.field, vote.a, vote.b)
        winner = OTHER_SIDE[vote.winner] if swapped else vote.winner
        counts.setdefault(question, Counter())[winner] += 1
    tallies = []
    for (field, a, b), count in counts.items():
        total = count.total()
        share = (count["b"] + count["same"] / 2) / total
        low, high = wilson(share, total)
        p = sign_test(count["a"], count["b"])
        wins = (count["a"], count["b"], count["same"])
        tallies.append(VoteTally(field, a, b, *wins, share, low, high, p))
    return tallies


def wilson(share: float, total: int) -> tuple[float, float]:
    """The 95 % interval of a share of `total` votes (Wilson 1927): right for few votes and for shares near 0 and 1."""
    centre = share + Z95**2 / (2 * total)
    half = Z95 * math.sqrt(share * (1 - share) / total + Z95**2 / (4 * total**2))
    scale = 1 + Z95**2 / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def sign_test(wins_a: int, wins_b: int) -> float:
    """How likely coins would split at least this unevenly; votes for neither do not count. 1.0 without votes."""
    total = wins_a + wins_b
    fewer = min(wins_a, wins_b)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**total)
