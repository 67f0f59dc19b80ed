"""Files behind a URL, whole or by ranges, tried again when they stall; local_cache.py keeps those
of a set.

    https://host/songs?token=...                what is after ? is sent with every request and never shown
    s3://bucket/songs, gs://, hf://, ...        whatever fsspec reads (transports.py)
    pipe:aws s3 cp s3://bucket/songs/{name} -   any command that prints file {name}: only with allow_pipe

What stalls, breaks off or answers 5xx is tried again, each time after twice as long.
"""

import http.client
import os
import urllib.error
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from megajukebox.common.errors import UserError
from megajukebox.common.files import sha256_of
from megajukebox.common.retry import RetriesExhausted, exponential_backoff, retry
from megajukebox.data.sample_errors import UnavailableFile
from megajukebox.data.shards.transports import NoRanges, is_http, may_pass, transport_for

Result = TypeVar("Result")

MAX_INDEX = 1 << 30  # bytes of index.json; 1.2 million songs need some tens of millions
DEFAULT_CACHE = (
    Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "megajukebox"
)


@dataclass(frozen=True)
class RemoteConfig:
    """How shard sets behind URLs are read."""

    cache: Path = DEFAULT_CACHE  # on a disk of this machine; its processes share it
    cache_bytes: int = 64 << 30  # of tars; each process may be fetching one more
    tries: int = 6
    backoff: float = 1.0  # seconds before the second try
    stall: float = 30.0  # seconds without a byte that end a try
    lost: Literal["skip", "stop"] = "skip"  # a shard that cannot be fetched: replaced, or run ends
    allow_pipe: bool = False  # a pipe: URL is a command; whoever writes it could run anything


class LostShard(UnavailableFile):
    """A file that could not be fetched; its clips are replaced."""


class TooLong(LostShard):
    """A file longer than the index says: not fetched to its end, which may not exist."""


class ShardUnavailable(Exception):
    """A file that could not be fetched, where that is to end the run."""


class ShardSource:
    """The files of one folder behind a URL.

    shown    the URL without what it keeps secret
    ranges   whether files can be read in pieces
    """

    def __init__(self, url: str, remote: RemoteConfig) -> None:
        self.remote = remote
        self.base = url
        self.query = ""
        if is_http(url):
            self.base, _, self.query = url.partition("?")
        self.shown = self.base.rstrip("/")
        self.transport = transport_for(url, remote.stall, remote.allow_pipe)
        self.ranges = self.transport.can_seek
        if url.startswith("pipe:") and "{name}" not in url:
            raise UserError(f"{url!r} has no {{name}}; write {{name}} where the file's name goes")

    def file_url(self, name: str) -> str:
        url = self.base.replace("{name}", name) if "{name}" in self.base else f"{self.shown}/{name}"
        return url + (f"?{self.query}" if self.query else "")

    def read(self, name: str, limit: int = MAX_INDEX) -> bytes:
        """A small file. LostShard if it cannot be fetched."""

        def attempt() -> bytes:
            with self.transport.blocks(self.file_url(name)) as blocks:
                return b"".join(limited(blocks, limit, name))

        return self._retried(name, attempt)

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """Bytes [start, start + size) of a file.

        Raises:
            LostShard: they cannot be fetched.
            NoRanges: the site sends whole files only.
        """
        url = self.file_url(name)
        return self._retried(name, lambda: self.transport.read_range(url, start, size))

    def fetch(self, name: str, to: Path, size: int, sha256: str) -> None:
        """A whole file, checked, as `to`.

        A try that breaks off is continued by the next one where the site can.
        """
        part = to.with_name(f"{to.name}.part")

        def attempt() -> None:
            start = part.stat().st_size if part.exists() else 0
            if start >= size or not self.ranges:
                part.unlink(missing_ok=True)
                start = 0
            with (
                self.transport.blocks(self.file_url(name), start) as blocks,
                open(part, "ab" if start else "wb") as file,
            ):
                for block in limited(blocks, size - start, name):
                    file.write(block)
            if part.stat().st_size != size:
                raise ConnectionError(f"{part.stat().st_size} of {size} bytes came")
            if sha256_of(part) != sha256:
                part.unlink()
                raise ConnectionError("its sha256 is not the one in index.json")
            os.replace(part, to)

        self._retried(name, attempt)

    def _retried(self, name: str, attempt: Callable[[], Result]) -> Result:
        """`attempt()`, tried again with growing pauses while the error may pass.

        LostShard when it does not.
        """
        try:
            return retry(
                attempt,
                exponential_backoff(self.remote.backoff, self.remote.tries - 1),
                errors=(OSError, http.client.HTTPException),
                is_transient=lambda error: may_pass(error) and not isinstance(error, TooLong),
            )
        except RetriesExhausted as failed:
            error = failed.last_error
            if isinstance(error, (NoRanges, TooLong)):
                raise error from None
            why = error.reason if isinstance(error, urllib.error.URLError) else error
            raise LostShard(
                f"unavailable: {self.shown}/{name} could not be fetched in {failed.tries} tries ({why})"
            ) from None


def limited(blocks: Iterable[bytes], limit: int, name: str) -> Iterator[bytes]:
    """`blocks`. Raises TooLong once they are more than `limit` bytes."""
    got = 0
    for block in blocks:
        got += len(block)
        if got > limit:
            raise TooLong(f"unavailable: {name} is longer than the {limit} bytes it should have")
        yield block
