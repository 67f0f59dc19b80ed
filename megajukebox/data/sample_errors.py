"""What can be wrong with a stored sample.

The kind is set where the fault is found and counted in the metrics.
"""

import errno
from typing import Literal, get_args

from megajukebox.common.errors import BadSampleError

BadSampleKind = Literal[
    "unavailable",  # the storage did not answer; the same file may be read later
    "crashed",  # the processes that read it died
    "truncated",  # the tar ends before the member does
    "damaged",  # a checksum or the tar's structure is wrong
    "too_large",
    "json",  # no JSON, or not a JSON object
    "bad_name",  # a key or a shard's name that is none
    "sample_rate",
    "not_finite",
    "too_loud",
    "too_short",  # fewer frames than the index says
    "bad_codes",
    "undecodable",  # no decoder reads the audio
    "missing",  # no such file
    "other",
]
ALL_KINDS: tuple[BadSampleKind, ...] = get_args(BadSampleKind)

# What a file system answers that is down or out of reach, and a machine short of handles or memory:
# the same file
# may be read later.
TRANSIENT_ERRNOS = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENOTCONN,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ESHUTDOWN,
        errno.EAGAIN,
        errno.EBUSY,
        errno.ENODEV,
        errno.ENXIO,
        errno.EREMOTEIO,
        errno.ENOLINK,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
    }
)


class UnavailableFile(OSError):
    """A file could not be fetched though it may exist: nothing is known about its content."""


def kind_of_error(error: Exception) -> BadSampleKind:
    """The kind under which a sample that raised `error` is counted."""
    if isinstance(error, BadSampleError):
        return error.kind if error.kind in ALL_KINDS else "other"  # type: ignore[return-value]
    if isinstance(error, MemoryError):  # more than a worker may take
        return "too_large"
    if isinstance(error, UnavailableFile):
        return "unavailable"
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS:
        return "unavailable"
    return "other"
