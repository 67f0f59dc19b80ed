"""Votes of the blind test: kept in a file that only grows, counted with confidence intervals."""

import fcntl
import math
import os
import stat
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from megajukebox.common.errors import UserError
from megajukebox.common.files import make_folder
from megajukebox.common.untrusted_files import UnsafeFileError, parse_json, read_inside

LOCK_SECONDS = 10.0
MAX_VOTES_BYTES = 64 << 20  # some 200,000 votes
MAX_LINE_BYTES = 1 << 16  # of one vote
MAX_VOTER_LETTERS = 40
Z95 = 1.959964  # of the normal distribution, two-sided 95 %
OTHER_SIDE = {"a": "b", "b": "a", "same": "same"}


Line = TypeVar("Line", bound=BaseModel)


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
    voter: str = ""  # a name that the listener's browser made up; votes of one listener are no independent ones


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


def append_line(path: Path, record: BaseModel) -> None:
    """Add one line, JSON of `record`, and sync it to the disk before this returns.

    A line that a crash cut off stays alone: the next one begins on a line of its own. Two servers may keep one file.

    Raises:
        UserError: it cannot be written, is a link, or is too large.
    """
    make_folder(path.parent)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        number = os.open(path, flags, 0o644)
    except OSError as error:
        raise unusable(path, error.strerror) from None
    with os.fdopen(number, "ab+") as file:
        facts = os.fstat(number)
        if not stat.S_ISREG(facts.st_mode):
            raise unusable(path, "is no regular file")
        lock(number, path)  # until it is closed
        size = file.seek(0, os.SEEK_END)
        if size > MAX_VOTES_BYTES:
            raise unusable(path, f"has more than {MAX_VOTES_BYTES >> 20} MB")
        if size > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(record.model_dump_json().encode() + b"\n")
        file.flush()
        os.fsync(number)


def lock(number: int, path: Path) -> None:
    """Lock an open file. Anybody who may read it can hold its lock, so nobody waits for ever.

    Raises:
        UserError: somebody held the lock for LOCK_SECONDS.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise unusable(path, "another process holds its lock") from None
            time.sleep(0.01)


def unusable(path: Path, reason: str | None) -> UserError:
    return UserError(
        f"votes cannot be kept in {path}: {reason}; start the server with another --votes"
    )


def append_vote(path: Path, vote: Vote) -> None:
    """Add one line; as `append_line`."""
    append_line(path, vote)


def read_votes(path: Path) -> tuple[list[Vote], int]:
    """The votes of a file, and how many of its lines are none; as `read_lines`."""
    return read_lines(path, Vote)


def read_lines(path: Path, kind: type[Line]) -> tuple[list[Line], int]:
    """The records of a file that `append_line` wrote, and how many of its lines are none.

    Raises:
        UserError: it is a link, no regular file, or too large.
    """
    try:
        content = read_inside(path.parent, path.name, MAX_VOTES_BYTES + MAX_LINE_BYTES)
    except FileNotFoundError:
        return [], 0
    except UnsafeFileError as error:
        raise unusable(path, error.strerror) from None
    records = []
    skipped = 0
    for line in content.splitlines():
        try:
            records.append(kind.model_validate(parse_json(line)))
        except ValueError:  # pydantic's too
            skipped += bool(line.strip())
    return records, skipped


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
