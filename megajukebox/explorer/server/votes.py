"""Votes of the blind test: kept in a file that only grows, summed with confidence intervals."""

import fcntl
import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

Z95 = 1.959964  # of the normal distribution, two-sided 95 %


class Vote(BaseModel):
    """One line of the file: what was compared, which samples were heard, which side was preferred."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    field: str  # what the two sides differ in: run, checkpoint, sampler ...
    a: str  # the value of the side that is called a in the sums, wherever it was heard
    b: str
    sample_a: str
    sample_b: str
    winner: Literal["a", "b", "same"]
    first: Literal["a", "b"]  # which of them the listener knew as A
    time: float


@dataclass(frozen=True)
class Sum:
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

    @property
    def votes(self) -> int:
        return self.wins_a + self.wins_b + self.same


def append(path: Path, vote: Vote) -> None:
    """Add one line, whole or not at all for whoever reads, and on the disk before this returns.

    A line that a crash cut off stays alone: the next one begins on a line of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # two servers may keep one file
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        os.write(handle, ("\n" if torn else "").encode() + vote.model_dump_json().encode() + b"\n")
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path) -> tuple[list[Vote], int]:
    """The votes of a file, and how many of its lines are none."""
    if not path.exists():
        return [], 0
    votes, skipped = [], 0
    for line in path.read_bytes().splitlines():
        try:
            votes.append(Vote.model_validate_json(line))
        except ValidationError:
            skipped += bool(line.strip())
    return votes, skipped


def sums(votes: Iterable[Vote]) -> list[Sum]:
    """One sum for every two sides that were compared, whichever way round they were chosen."""
    counts: dict[tuple[str, str, str], Counter[str]] = {}
    for vote in votes:
        turned = vote.a > vote.b
        question = (vote.field, *((vote.b, vote.a) if turned else (vote.a, vote.b)))
        winner = {"a": "b", "b": "a"}.get(vote.winner, "same") if turned else vote.winner
        counts.setdefault(question, Counter())[winner] += 1
    return [summed(*question, count) for question, count in counts.items()]


def summed(field: str, a: str, b: str, count: Counter[str]) -> Sum:
    total = count.total()
    share = (count["b"] + count["same"] / 2) / total
    low, high = wilson(share, total)
    return Sum(
        field,
        a,
        b,
        count["a"],
        count["b"],
        count["same"],
        share,
        low,
        high,
        sign_test(count["a"], count["b"]),
    )


def wilson(share: float, total: int) -> tuple[float, float]:
    """The 95 % interval of a share of `total` votes (Wilson 1927): right for few votes and for shares near 0 and 1."""
    centre = share + Z95**2 / (2 * total)
    half = Z95 * math.sqrt(share * (1 - share) / total + Z95**2 / (4 * total**2))
    scale = 1 + Z95**2 / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def sign_test(wins_a: int, wins_b: int) -> float:
    """How likely coins would split at least this unevenly; votes for neither do not count. 1.0 without votes."""
    total, fewer = wins_a + wins_b, min(wins_a, wins_b)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**total)


def as_json(sum_: Sum) -> dict[str, Any]:
    return {**vars(sum_), "votes": sum_.votes}
