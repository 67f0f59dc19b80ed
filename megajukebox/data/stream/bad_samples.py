"""Clips that could not be read: counted by kind, reported one by one, and the end of the run above a share."""

import errno
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

OnBad = Callable[[str, str, str], None]

UNAVAILABLE = "unavailable"

KINDS = (  # words in a reason -> the kind it is counted as; the first that fits
    ("unavailable:", UNAVAILABLE),
    ("crashed:", "crashed"),
    ("the tar ends", "truncated"),
    ("is damaged", "damaged"),
    ("is too large", "too_large"),
    ("is nested too deeply", "json"),
    (" JSON", "json"),
    ("is not a name of", "bad_name"),
    ("is not the name of", "bad_name"),
    ("sample rate", "sample_rate"),
    ("not finite", "not_finite"),
    ("too loud", "too_loud"),
    ("frames at frame", "too_short"),
    ("codes", "bad_codes"),
    ("unreadable", "undecodable"),
    ("No such file", "missing"),
)
# What a file system answers that is down or out of reach, and a machine short of handles or memory: the same file
# may be read later.
PASSING = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
    errno.ENOTCONN, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ESHUTDOWN, errno.EAGAIN,
    errno.EBUSY, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO, errno.ENOLINK, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
}  # fmt: skip
ALL_KINDS = (*dict.fromkeys(kind for _, kind in KINDS), "other")


def reason_of(error: Exception) -> str:
    """Why a clip could not be read."""
    return (
        f"{UNAVAILABLE}: {error}"
        if isinstance(error, OSError) and error.errno in PASSING
        else str(error)
    )


class StorageUnavailable(Exception):
    """What the shards lie on does not answer. Nothing is wrong with the run: started again later, it goes on."""


@dataclass(frozen=True)
class BadSample:
    """A clip that could not be read and was replaced."""

    shard: str
    key: str
    reason: str

    @property
    def kind(self) -> str:
        """One word for the metrics."""
        return next((kind for words, kind in KINDS if words in self.reason), "other")


def too_many(kinds: Mapping[str, int]) -> type[Exception]:
    """What too many bad clips of these kinds mean: storage that is down, or a corpus that a person must look at."""
    return StorageUnavailable if 2 * kinds.get(UNAVAILABLE, 0) > sum(kinds.values()) else ValueError


class BadSampleCounter:
    """Counts clips read and replaced, reports each bad one, and stops above a share: the disk may be what is broken.

    It stops with ValueError, or StorageDown where most of them could not be had at all; with a share of 1 never: of
    one clip that is read, any number of candidates may have been tried.
    """

    def __init__(self, share: float, after: int, on_bad: OnBad | None) -> None:
        self.share, self.after, self.on_bad = share, after, on_bad
        self.seen = self.bad = 0
        self.kinds: Counter[str] = Counter()
        self.shards: Counter[str] = Counter()

    def add(self, clips: int, bad: Sequence[BadSample]) -> None:
        self.seen += clips
        self.bad += len(bad)
        for one in bad:
            self.kinds[one.kind] += 1
            self.shards[one.shard] += 1
            if self.on_bad:
                self.on_bad(one.shard, one.key, one.reason)
        if self.share < 1 and self.seen >= self.after and self.bad > self.share * self.seen:
            raise too_many(self.kinds)(
                f"too many bad samples: {self.bad} of {self.seen} clips could not be read, more than the share "
                f"bad_share {self.share} ({self.summary()}); check the shards (megajukebox shards check), or raise "
                f"bad_share to go on without them"
            )

    def summary(self) -> str:
        """Kinds and shards, the commonest first."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        shards = ", ".join(f"{count} in {shard}" for shard, count in self.shards.most_common(3))
        return f"{kinds}; {shards}"
