"""Clips that could not be read: counted by kind, reported one by one, and the end of the run
above a ratio.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from megajukebox.common.errors import UserError
from megajukebox.data.sample_errors import BadSampleKind, kind_of_error

MAX_REASON = 500  # characters of a reason that are kept


class StorageUnavailable(Exception):
    """The storage of the shards does not answer.

    The run itself is sound: restarted later, it resumes.
    """


@dataclass(frozen=True)
class BadSample:
    """A clip that could not be read and was replaced."""

    shard: str
    key: str
    kind: BadSampleKind
    reason: str


OnBad = Callable[[str, str, str, str], None]  # shard, key, kind, reason


def bad_sample_of(shard: str, key: str, error: Exception) -> BadSample:
    """The record of a clip whose reading raised `error`."""
    kind = kind_of_error(error)
    reason = str(error)
    if kind == "unavailable" and not reason.startswith("unavailable:"):
        reason = f"unavailable: {reason}"
    return BadSample(shard, key, kind, reason[:MAX_REASON])


def error_for_many(kinds: Mapping[str, int]) -> type[Exception]:
    """What too many bad clips of these kinds mean: storage that is down, or a corpus that a
    person must look at.
    """
    return (
        StorageUnavailable if 2 * kinds.get("unavailable", 0) > sum(kinds.values()) else UserError
    )


@dataclass(eq=False)
class BadSampleCounter:
    """Counts clips read and replaced, reports each bad one, and stops above a ratio: the disk may
    be broken.

    Raises UserError then, or StorageUnavailable where the storage did not answer for most of them;
    never with a ratio of 1: for one clip that is read, any number of candidates may have been
    tried.
    """

    max_ratio: float
    after: int  # clips to read before the ratio counts
    on_bad: OnBad | None
    seen: int = 0
    bad: int = 0
    kinds: Counter[str] = field(default_factory=Counter)  # of the bad ones
    shards: Counter[str] = field(default_factory=Counter)

    def add(self, clips: int, bad: Sequence[BadSample]) -> None:
        """Count `clips` that were read and those that were replaced on the way."""
        self.seen += clips
        self.bad += len(bad)
        for one in bad:
            self.kinds[one.kind] += 1
            self.shards[one.shard] += 1
            if self.on_bad:
                self.on_bad(one.shard, one.key, one.kind, one.reason)
        if self.max_ratio < 1 and self.seen >= self.after and self.bad > self.max_ratio * self.seen:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
            shards = ", ".join(f"{count} in {shard}" for shard, count in self.shards.most_common(3))
            raise error_for_many(self.kinds)(
                f"too many bad samples: {self.bad} of {self.seen} clips could not be read, more than the share "
                f"bad_share {self.max_ratio} ({kinds}; {shards}); check the shards (megajukebox shards check), or "
                f"raise bad_share to go on without them"
            )
