"""Files behind a URL, whole or by ranges, tried again when they stall; local_cache.py keeps those
of a set.

    https://host/songs                          secrets and fingerprints that go along: source_url.py
    s3://bucket/songs, gs://, hf://, ...        whatever fsspec reads (transports.py)
    pipe:aws s3 cp s3://bucket/songs/{name} -   any command that prints file {name}: only with allow_pipe

What stalls, breaks off or answers 5xx is tried again, each time after twice as long.
"""

import http.client
import json
import os
import urllib.error
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from megajukebox.common.errors import UserError
from megajukebox.common.files import (
    HashingFile,
    atomic_open,
    create_new,
    open_append,
    sha256_of,
    write_atomic,
)
from megajukebox.common.retry import RetriesExhausted, exponential_backoff, retry
from megajukebox.data.sample_errors import UnavailableFile
from megajukebox.data.shards.source_url import SourceUrl
from megajukebox.data.shards.transports import NoRanges, RemoteAccess, may_pass, transport_for

Result = TypeVar("Result")

DEFAULT_CACHE = (
    Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "megajukebox"
)


@dataclass(frozen=True)
class RemoteConfig(RemoteAccess):
    """How shard sets behind URLs are read."""

    cache: Path = DEFAULT_CACHE  # on a disk of this machine; its processes share it
    cache_bytes: int = 64 << 30  # of tars; each process may be fetching one more
    tries: int = 6
    backoff: float = 1.0  # seconds before the second try
    lost: Literal["skip", "stop"] = "skip"  # a shard that cannot be fetched: replaced, or run ends


class LostShard(UnavailableFile):
    """A file that could not be fetched; its clips are replaced."""


class TooLong(LostShard):
    """A file longer than the index says: not fetched to its end, which may not exist."""


class AnotherFile(LostShard):
    """A file whose checksum is not the one in the index."""


class ShardUnavailable(Exception):
    """A file that could not be fetched, where that is to end the run."""


class ShardSource:
    """The files of one folder behind a URL.

    shown    the URL without what it keeps secret
    wanted   the fingerprint that the index must have, or None
    ranges   whether files can be read in pieces
    """

    def __init__(self, url: str, remote: RemoteConfig) -> None:
        self.remote = remote
        self.address = SourceUrl.parse(url, remote.token)
        self.base = self.address.base
        self.wanted = self.address.fingerprint
        self.shown = self.base.rstrip("/")
        self.transport = transport_for(self.address, remote)
        # A fingerprint stands for the checksums of whole shards; a piece of one has none to be compared with.
        self.ranges = self.transport.can_seek and self.wanted is None
        if self.base.startswith("pipe:") and "{name}" not in self.base:
            raise UserError(f"{url!r} has no {{name}}; write {{name}} where the file's name goes")

    def file_url(self, name: str) -> str:
        path = (
            self.base.replace("{name}", name) if "{name}" in self.base else f"{self.shown}/{name}"
        )
        return self.address.with_query(path)

    def read(self, name: str, limit: int) -> bytes:
        """A small file, of at most `limit` bytes. LostShard if it cannot be fetched."""

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

    def fetch_small(self, name: str, to: Path, limit: int, sha256: str) -> None:
        """A whole file of unknown size, checked, as `to`. LostShard if it cannot be fetched, or is another."""

        def attempt() -> None:
            with (
                atomic_open(to) as file,
                self.transport.blocks(self.file_url(name)) as blocks,
            ):
                hashed = HashingFile(file)
                for block in limited(blocks, limit, name):
                    hashed.write(block)
                if hashed.sha256.hexdigest() != sha256:
                    raise AnotherFile(
                        f"{self.shown}/{name} is not the file that index.json speaks of (sha256)"
                    )

        self._retried(name, attempt)

    def fetch(self, name: str, to: Path, size: int, sha256: str) -> None:
        """A whole file, checked, as `to`; for this user alone, in whose folder `to` is.

        A try that breaks off is continued by the next one where the site can.
        """
        part = to.with_name(f"{to.name}.part")

        def attempt() -> None:
            start = part.stat().st_size if part.exists() else 0
            if start >= size or not self.transport.can_seek:
                part.unlink(missing_ok=True)
                start = 0
            with (
                self.transport.blocks(self.file_url(name), start) as blocks,
                open_append(part) if start else create_new(part) as file,
            ):
                for block in limited(blocks, size - start, name):
                    file.write(block)
            if part.stat().st_size != size:
                raise ConnectionError(f"{part.stat().st_size} of {size} bytes came")
            if sha256_of(part) != sha256:
                part.unlink()
                raise ConnectionError("its sha256 is not the one in index.json")
            note_verified(file_identity(os.stat(part)), to, sha256)
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
                is_transient=lambda error: (
                    may_pass(error) and not isinstance(error, (TooLong, AnotherFile))
                ),
            )
        except RetriesExhausted as failed:
            error = failed.last_error
            if isinstance(error, (NoRanges, TooLong, AnotherFile)):
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


def verified_record(path: Path) -> Path:
    """The file that says what this user compared the tar at `path` with."""
    return path.with_name(f"{path.name}.verified")


def note_verified(identity: dict[str, int], path: Path, sha256: str) -> None:
    """Write down that the file of this identity, which is or becomes `path`, has this checksum."""
    record = json.dumps({**identity, "sha256": sha256})
    write_atomic(verified_record(path), record.encode())


def file_identity(status: os.stat_result) -> dict[str, int]:
    """What changes when a file is exchanged or written to."""
    return {"inode": status.st_ino, "mtime_ns": status.st_mtime_ns, "size": status.st_size}
