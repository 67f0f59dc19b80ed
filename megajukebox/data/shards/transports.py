"""How bytes come from behind a URL: http(s) by urllib, object stores by fsspec, a command's output
by a pipe.

    https://host/songs                          Range requests; a server that sends less than LEAST_RATE fails;
                                                redirects stay on the host but for those the user names
    s3://, gs://, hf://, az://, memory:// ...   fsspec; its backend is a package of its own (s3fs, gcsfs, ...)
    pipe:COMMAND, scp://, htgs://, ais://       commands of webdataset's gopen; only with allow_pipe

http stays ours: fsspec's is not fork-safe, takes a whole file for a range where a site has no ranges,
and needs aiohttp (docs/decisions/0035).
"""

import contextlib
import http.client
import io
import os
import re
import select
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeVar
from urllib.parse import SplitResult, urlsplit

from megajukebox.common.errors import UserError
from megajukebox.data.shards.source_url import SourceUrl

Result = TypeVar("Result")

URL = re.compile(r"pipe:|[A-Za-z][A-Za-z0-9+.-]*://")
COMMANDS = ("pipe:", "scp://", "htgs://", "ais://")  # what only webdataset's gopen knows
TRANSIENT_HTTP = {408, 425, 429}  # of the 4xx answers, those that another try may change
DEFAULT_PORTS = {"http": 80, "https": 443}
LEAST_RATE = (
    1024.0  # bytes a second, over a time of `stall`: at less a shard of a GB takes more than a week
)
BLOCK = 1 << 20  # bytes read at a time
FSSPEC_BLOCK = 4 << 20  # bytes of one request of fsspec
PIP_PACKAGES = {  # protocol of fsspec -> what to install for it
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
    "az": "adlfs",
    "abfs": "adlfs",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "smb": "smbprotocol",
    "oci": "ocifs",
    "oss": "ossfs",
    "webdav": "webdav4",
    "hdfs": "pyarrow",
}


@dataclass(frozen=True, kw_only=True)
class RemoteAccess:
    """How what lies behind a URL may be read."""

    stall: float = 30.0  # seconds without a byte, or below LEAST_RATE, that end a try
    allow_pipe: bool = False  # a pipe: URL is a command; whoever writes it could run anything
    redirect_hosts: tuple[str, ...] = ()  # that an http server may send us to
    token: str | None = field(default=None, repr=False)  # a secret to send along, see source_url.py


class RedirectRefused(OSError):
    """An http server sends us to another place than the user named."""


class NoRanges(OSError):
    """The site sends whole files only."""


def is_url(source: str | Path) -> bool:
    return bool(URL.match(str(source)))


def is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def check_allowed(url: str, allow_pipe: bool) -> None:
    """Raises UserError for a URL that would run a command without leave."""
    if url.startswith(COMMANDS) and not allow_pipe:
        raise UserError(
            f"{url!r} would run a command; give --allow-pipe if you trust whoever wrote it"
        )


def may_pass(error: Exception) -> bool:
    """Whether another try to read a file may succeed after this error."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code in TRANSIENT_HTTP
    return not isinstance(error, (NoRanges, RedirectRefused, FileNotFoundError, PermissionError))


def transport_for(address: SourceUrl, access: RemoteAccess) -> "Transport":
    """The transport of a URL.

    Raises:
        UserError: the URL would run a command without leave, or the package that reads it is
            missing.
    """
    url = address.base
    check_allowed(url, access.allow_pipe)
    if is_http(url):
        return HttpTransport(access.stall, access.redirect_hosts, address.authorization)
    if url.startswith(COMMANDS):
        return CommandTransport(access.stall)
    file_system_of(url)
    return FsspecTransport(access.stall)


def open_stream(url: str, access: RemoteAccess) -> BinaryIO:
    """The file behind a URL, to read once from its start to its end."""
    address = SourceUrl.parse(url, access.token)
    transport = transport_for(address, access)
    if isinstance(transport, HttpTransport):
        return transport.request(address.with_query(address.base), {})
    return io.BufferedReader(BlockReader(transport.blocks(address.base)), BLOCK)  # type: ignore[return-value]


# ---- http


class TransferRate:
    """How long we waited for how many bytes; the reader's own pauses do not count."""

    def __init__(self, window: float) -> None:
        self.window = window  # seconds
        self.waited = 0.0
        self.got = 0

    def add(self, seconds: float, size: int) -> None:
        """Count a read. Raises TimeoutError where a whole window brought less than LEAST_RATE."""
        self.waited += seconds
        self.got += size
        if self.waited < self.window:
            return
        if self.got < LEAST_RATE * self.waited:
            raise TimeoutError(f"{self.got} bytes came in {self.waited:.0f} seconds")
        self.waited = 0.0
        self.got = 0


class PacedReader(io.RawIOBase):
    """A socket's bytes; one that sends too slowly is an error: a byte a second is no silence, and has no end either."""

    def __init__(self, raw: io.RawIOBase, pace: TransferRate) -> None:
        super().__init__()
        self._raw = raw
        self._pace = pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        started = time.monotonic()
        size = self._raw.readinto(buffer)
        self._pace.add(time.monotonic() - started, size or 0)
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()


class PacedResponse(http.client.HTTPResponse):
    """An answer, its header included, that must come at LEAST_RATE."""

    def __init__(self, sock: Any, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp: Any = io.BufferedReader(
            PacedReader(self.fp.detach(), TransferRate(sock.gettimeout()))
        )


class PacedHTTPConnection(http.client.HTTPConnection):
    response_class = PacedResponse


class PacedHTTPSConnection(http.client.HTTPSConnection):
    response_class = PacedResponse


class PacedHTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(PacedHTTPConnection, request)


class PacedHTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(PacedHTTPSConnection, request)


class CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect on the same host, to https there, and to the hosts that the user named."""

    def __init__(self, hosts: tuple[str, ...]) -> None:
        self.hosts = {host.lower() for host in hosts}

    def redirect_request(
        self, request: urllib.request.Request, *answer: Any
    ) -> urllib.request.Request | None:
        new_url = answer[-1]
        stays = self._check(request.full_url, new_url)
        follow = super().redirect_request(request, *answer)
        authorization = request.unredirected_hdrs.get("Authorization")
        if follow and stays and authorization:
            follow.add_unredirected_header("Authorization", authorization)
        return follow

    def _check(self, url: str, new_url: str) -> bool:
        """Whether a redirect stays on the host.

        Raises:
            RedirectRefused: it leaves https, or goes to a host that nobody named.
        """
        old, new = urlsplit(url), urlsplit(new_url)
        shown = f"{old.scheme}://{old.netloc} sends us to {new.scheme}://{new.hostname}"
        if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
            raise RedirectRefused(f"{shown}, from {old.scheme} to {new.scheme}, which is refused")
        old_place, new_place = place_of(old), place_of(new)
        upgraded = (old_place[0], DEFAULT_PORTS["https"]) if old.scheme != new.scheme else old_place
        if new_place in (old_place, upgraded):
            return True
        if new.hostname in self.hosts or f"{new.hostname}:{new_place[1]}" in self.hosts:
            return False
        raise RedirectRefused(
            f"{shown}; give --redirect-host {new.hostname} if the data may come from there"
        )


def place_of(parts: SplitResult) -> tuple[str | None, int | None]:
    """(host, port) of a URL."""
    return parts.hostname, parts.port or DEFAULT_PORTS.get(parts.scheme)


@dataclass(eq=False)
class HttpTransport:
    """Files of an http server, by urllib: slowness and short bodies are errors."""

    stall: float  # seconds without a byte, or below LEAST_RATE, that end a try
    redirect_hosts: tuple[str, ...] = ()
    authorization: str | None = field(default=None, repr=False)  # for the host of the URL alone
    can_seek = True

    def __post_init__(self) -> None:
        self._opener = urllib.request.build_opener(
            PacedHTTPHandler, PacedHTTPSHandler, CheckedRedirects(self.redirect_hosts)
        )

    @contextlib.contextmanager
    def blocks(self, url: str, start: int = 0) -> Iterator[Iterator[bytes]]:
        with self.request(url, {"Range": f"bytes={start}-"} if start else {}) as answer:
            missing = start if answer.status != 206 else 0
            while missing > 0:  # the site sends the file from its start: read past what is here
                block = answer.read(min(missing, BLOCK))
                if not block:
                    raise ConnectionError("the body ended early")
                missing -= len(block)
            yield body_blocks(answer)

    def read_range(self, url: str, start: int, size: int) -> bytes:
        with self.request(url, {"Range": f"bytes={start}-{start + size - 1}"}) as answer:
            if answer.status != 206:
                raise NoRanges(f"{url.partition('?')[0]} does not answer range requests")
            data = answer.read(size)
        if len(data) != size:
            raise ConnectionError(f"{len(data)} of {size} bytes came")
        return data

    def request(self, url: str, headers: dict[str, str]) -> Any:
        """The answer, open, to a request for `url`."""
        request = urllib.request.Request(url, headers={"User-Agent": "megajukebox", **headers})
        if self.authorization:
            # not among the headers that a redirect takes along
            request.add_unredirected_header("Authorization", self.authorization)
        return self._opener.open(request, timeout=self.stall)


def body_blocks(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body of an answer. Raises ConnectionError where it ends early."""
    promised = answer.length
    got = 0
    while block := answer.read(BLOCK):
        got += len(block)
        yield block
    if promised is not None and got != promised:
        raise ConnectionError(f"the body ended after {got} of {promised} bytes")


# ---- fsspec


@dataclass(eq=False)
class FsspecTransport:
    """Files of an object store by fsspec.

    No read may take longer than `stall` seconds, whatever the backend does.
    """

    stall: float  # seconds without a byte that end a try
    can_seek = True

    @contextlib.contextmanager
    def blocks(self, url: str, start: int = 0) -> Iterator[Iterator[bytes]]:
        files, path = file_system_of(url)
        with (
            self._reported(),
            self._within_stall(lambda: files.open(path, "rb", block_size=FSSPEC_BLOCK)) as file,
        ):
            file.seek(start)
            yield iter(lambda: self._within_stall(lambda: file.read(BLOCK)), b"")

    def read_range(self, url: str, start: int, size: int) -> bytes:
        files, path = file_system_of(url)
        with self._reported():
            data = self._within_stall(lambda: files.cat_file(path, start=start, end=start + size))
        if len(data) != size:
            raise ConnectionError(f"{len(data)} of {size} bytes came")
        return data

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """Every backend has exceptions of its own; to us they are one: the file could not be
        read.
        """
        try:
            yield
        except (OSError, UserError):
            raise
        except Exception as error:
            name = type(error).__name__
            if "Credential" in name:  # another try would not find any
                raise PermissionError(
                    f"{name}: {error}; log in with the store's own tool, or for a public bucket set FSSPEC_S3_ANON=true"
                ) from error
            raise ConnectionError(f"{name}: {error}") from error

    def _within_stall(self, read: Callable[[], Result]) -> Result:
        """`read()` in a thread of its own; TimeoutError after `stall` seconds.

        A thread that hangs is left behind.
        """
        results: list[Result] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(read())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True, name="fsspec-read")
        thread.start()
        thread.join(self.stall)
        if thread.is_alive():
            raise TimeoutError(f"nothing came for {self.stall:g} seconds")
        if errors:
            raise errors[0]
        return results[0]


def file_system_of(url: str) -> tuple[Any, str]:
    """(file system, path) of a URL. fsspec keeps one file system for each process, so ask anew
    after a fork.

    Raises:
        UserError: no such protocol, or its package is not installed.
    """
    import fsspec  # 0.1 s; local sets do without

    protocol = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = PIP_PACKAGES.get(protocol)
        way_out = f"pip install {package}" if package else str(error)
        raise UserError(
            f"{protocol}:// needs a package that is not installed: {way_out}"
        ) from error
    except ValueError as error:
        raise UserError(f"{url!r} cannot be opened ({error}); is {protocol}:// right?") from error


class BlockReader(io.RawIOBase):
    """Blocks of bytes as a file that is read once; closing it closes what they come from."""

    def __init__(self, source: contextlib.AbstractContextManager[Iterator[bytes]]) -> None:
        super().__init__()
        self._exit = contextlib.ExitStack()
        self._blocks = self._exit.enter_context(source)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or next(self._blocks, b"")
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            self._exit.close()
        super().close()


# ---- commands


@dataclass(eq=False)
class CommandTransport:
    """What a command prints: always the whole file."""

    stall: float  # seconds without a byte that end a try
    can_seek = False

    @contextlib.contextmanager
    def blocks(self, url: str, start: int = 0) -> Iterator[Iterator[bytes]]:
        from webdataset.gopen import gopen  # imports torch

        pipe = gopen(url, "rb")
        with pipe:
            yield self._output(pipe)

    def read_range(self, url: str, start: int, size: int) -> bytes:
        raise NoRanges("a command prints whole files")

    def _output(self, pipe: Any) -> Iterator[bytes]:
        pace = TransferRate(self.stall)
        while True:
            started = time.monotonic()
            if not select.select([pipe.stream], [], [], self.stall)[0]:
                pipe.proc.kill()
                raise TimeoutError(f"the command printed nothing for {self.stall:g} seconds")
            block = os.read(pipe.stream.fileno(), BLOCK)
            try:
                pace.add(time.monotonic() - started, len(block))
            except TimeoutError:
                pipe.proc.kill()
                raise
            if not block:
                return
            yield block


# What all three have: `can_seek`; `blocks(url, start)`, a context of the file's blocks from byte `start` on (a
# transport that cannot seek ignores it); `read_range(url, start, size)`. What fails raises OSError or HTTPException.
Transport: TypeAlias = HttpTransport | FsspecTransport | CommandTransport
