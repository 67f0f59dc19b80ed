"""Files behind a URL, whole or by ranges, tried again when they stall; node_cache.py keeps those of a set.

    https://host/songs?token=...                what is after ? is sent with every request and never shown
    pipe:aws s3 cp s3://bucket/songs/{name} -   any command that prints file {name}: only with allow_pipe
    gs://bucket/songs, hf://..., sftp://...     what webdataset's gopen knows; a command too: only with allow_pipe

What stalls, breaks off or answers 5xx is tried again, each time after twice as long.
"""

import contextlib
import http.client
import os
import re
import select
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from megajukebox.common.files import sha256_of
from megajukebox.common.retry import RetriesExhausted, exponential_backoff, retry

Result = TypeVar("Result")

URL = re.compile(r"pipe:|[A-Za-z][A-Za-z0-9+.-]*://")
PASSING = {408, 425, 429}  # of the 4xx answers, those that another try may change
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
    lost: Literal["skip", "stop"] = (
        "skip"  # what becomes of a shard that cannot be fetched: replaced, or the run ends
    )
    allow_pipe: bool = False  # a pipe: URL is a command; whoever writes it could run anything


class LostShard(OSError):
    """A file that could not be fetched; its clips are replaced."""


class ShardUnavailable(Exception):
    """A file that could not be fetched, where that is to end the run."""


def is_url(source: str | Path) -> bool:
    return bool(URL.match(str(source)))


class ShardSource:
    """The files of one folder behind a URL."""

    def __init__(self, url: str, remote: RemoteConfig):
        self.remote = remote
        self.base, _, self.query = url.partition("?") if url.startswith("http") else (url, "", "")
        self.shown = self.base.rstrip("/")
        self.http = bool(re.match(r"https?://", url))
        if not self.http and not remote.allow_pipe:
            raise ValueError(
                f"{url!r} would run a command; give --allow-pipe if you trust whoever wrote it"
            )
        if url.startswith("pipe:") and "{name}" not in url:
            raise ValueError(f"{url!r} says not where the file's name goes; write {{name}} there")

    def file_url(self, name: str) -> str:
        url = self.base.replace("{name}", name) if "{name}" in self.base else f"{self.shown}/{name}"
        return url + (f"?{self.query}" if self.query else "")

    def read(self, name: str, limit: int = MAX_INDEX) -> bytes:
        """A small file. LostShard if it cannot be fetched."""

        def attempt() -> bytes:
            with self._open(name) as parts:
                return b"".join(limited(parts, limit, name))

        return self._tried(name, attempt)

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """Bytes [start, start + size) of a file, over http. LostShard if they cannot be fetched."""

        def attempt() -> bytes:
            headers = {"Range": f"bytes={start}-{start + size - 1}"}
            with self._request(name, headers) as answer:
                if answer.status != 206:
                    raise NoRanges(f"{self.shown} does not answer range requests")
                data = answer.read(size)
            if len(data) != size:
                raise ConnectionError(f"{len(data)} of {size} bytes came")
            return data

        return self._tried(name, attempt)

    def fetch(self, name: str, to: Path, size: int, sha256: str) -> None:
        """A whole file, checked, as `to`. A try that breaks off is continued by the next one where the site can."""
        part = to.with_name(f"{to.name}.part")

        def attempt() -> None:
            self._continue(name, part, size)
            if sha256_of(part) != sha256:
                part.unlink()
                raise ConnectionError("its sha256 is not the one in index.json")
            os.replace(part, to)

        self._tried(name, attempt)

    def _continue(self, name: str, part: Path, size: int) -> None:
        have = part.stat().st_size if part.exists() else 0
        if have >= size:
            part.unlink()
            have = 0
        with (
            self._open(name, have) as parts,
            open(part, "ab" if have and self.http else "wb") as file,
        ):
            for block in limited(parts, size - (have if self.http else 0), name):
                file.write(block)
        if part.stat().st_size != size:
            raise ConnectionError(f"{part.stat().st_size} of {size} bytes came")

    @contextlib.contextmanager
    def _open(self, name: str, start: int = 0) -> Iterator[Iterator[bytes]]:
        """The blocks of a file from byte `start` on (a command always prints all of it)."""
        if not self.http:
            with command_output(self.file_url(name), self.remote.stall) as blocks:
                yield blocks
            return
        with self._request(name, {"Range": f"bytes={start}-"} if start else {}) as answer:
            if start and answer.status != 206:
                drop(answer, start)
            yield http_blocks(answer)

    def _request(self, name: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        request = urllib.request.Request(
            self.file_url(name), headers={"User-Agent": "megajukebox", **headers}
        )
        return urllib.request.urlopen(request, timeout=self.remote.stall)

    def _tried(self, name: str, attempt: Callable[[], Result]) -> Result:
        """`attempt()`, tried again with growing pauses while the error may pass. LostShard when it does not."""
        try:
            return retry(
                attempt,
                exponential_backoff(self.remote.backoff, self.remote.tries - 1),
                errors=(OSError, http.client.HTTPException),
                is_transient=may_pass,
            )
        except RetriesExhausted as failed:
            error = failed.last_error
            if isinstance(error, (NoRanges, TooLong)):
                raise error from None
            why = error.reason if isinstance(error, urllib.error.URLError) else error
            raise LostShard(
                f"unavailable: {self.shown}/{name} could not be fetched in {failed.tries} tries ({why})"
            ) from None


class NoRanges(OSError):
    """The site sends whole files only."""


class TooLong(LostShard):
    """A file longer than the index says: not fetched to its end, which may not exist."""


def may_pass(error: Exception) -> bool:
    """Whether another try may succeed."""
    if isinstance(error, (NoRanges, TooLong)):
        return False
    return (
        not isinstance(error, urllib.error.HTTPError) or error.code >= 500 or error.code in PASSING
    )


def limited(blocks: Iterable[bytes], limit: int, name: str) -> Iterator[bytes]:
    got = 0
    for block in blocks:
        got += len(block)
        if got > limit:
            raise TooLong(f"unavailable: {name} is longer than the {limit} bytes it should have")
        yield block


def http_blocks(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    promised, got = answer.length, 0
    while block := answer.read(1 << 20):
        got += len(block)
        yield block
    if promised is not None and got != promised:
        raise ConnectionError(f"the body ended after {got} of {promised} bytes")


def drop(answer: http.client.HTTPResponse, count: int) -> None:
    """Read past what is there already: the site sent the file from its start."""
    while count > 0:
        block = answer.read(min(count, 1 << 20))
        if not block:
            raise ConnectionError("the body ended early")
        count -= len(block)


@contextlib.contextmanager
def command_output(url: str, stall: float) -> Iterator[Iterator[bytes]]:
    """What webdataset's command for `url` prints; ended when it prints nothing for `stall` seconds."""
    from webdataset.gopen import (
        gopen,  # imports torch, which the processes that only read files should not pay for
    )

    pipe = gopen(url, "rb")

    def blocks() -> Iterator[bytes]:
        while True:
            if not select.select([pipe.stream], [], [], stall)[0]:
                pipe.proc.kill()
                raise TimeoutError(f"the command printed nothing for {stall:g} seconds")
            block = os.read(pipe.stream.fileno(), 1 << 20)
            if not block:
                return
            yield block

    with pipe:
        yield blocks()
