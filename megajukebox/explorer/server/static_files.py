"""The pages' own server: the files of the site, the recordings of the samples, and nothing else of the disk."""

import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, unquote_to_bytes, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.explorer import site_files
from megajukebox.explorer.loaders.corpus import CorpusSong
from megajukebox.explorer.loaders.samples import ListedSample, find_samples
from megajukebox.explorer.site_builder import SampleList, write_runs, write_samples

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")
COOKIE = "megajukebox"
RUNS_INTERVAL_SECONDS = 10.0  # between two writings of the runs' pages
BLOCK_BYTES = 1 << 16  # of a song sent at a time
MEDIA_TYPES = {
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
    ".mp3": "audio/mpeg",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; img-src 'self' data:;"
    " media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class ShardRecordings:
    """The songs of a shard set that are played straight out of its tars, by the paths that the pages name."""

    def __init__(self, shards: ShardSet, songs: list[CorpusSong]) -> None:
        self.shards = shards
        self.rows = {}
        for song in songs:
            if song.excerpt.seconds is None and song.audio:
                self.rows[str(song.audio["original"])] = song.row

    def get(self, path: str, request: Request) -> Response | None:
        """The song at `path`, or the range of it that is asked for; None if it is none of the songs."""
        if path not in self.rows:
            return None
        reader = self.shards.open_member(self.rows[path], "audio")
        first, last, status = parse_range(request.headers.get("range"), reader.size)
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Length": str(last - first + 1),
            "Cache-Control": "no-cache",
        }
        if status == 206:
            headers["Content-Range"] = f"bytes {first}-{last}/{reader.size}"
        media_type = MEDIA_TYPES.get(Path(path).suffix)
        return StreamingResponse(read_blocks(reader, first, last), status, headers, media_type)


def parse_range(header: str | None, size: int) -> tuple[int, int, int]:
    """(first byte, last byte, status) of a Range header; all of it where the header is none that is known."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").strip())
    if not match or not any(match.groups()):
        return 0, size - 1, 200
    if not match[1]:
        return max(0, size - int(match[2])), size - 1, 206
    first = int(match[1])
    if first >= size:
        raise HTTPException(416, headers={"Content-Range": f"bytes */{size}"})
    return first, min(int(match[2] or size), size - 1), 206


def read_blocks(reader: Any, first: int, last: int) -> Iterator[bytes]:
    """The bytes from `first` to `last`, and then the reader is closed."""
    with reader:
        reader.seek(first)
        while first <= last:
            block = reader.read(min(BLOCK_BYTES, last - first + 1))
            if not block:
                return
            first += len(block)
            yield block


@dataclass
class Library:
    """What is shown, and its site at `out`: built anew when a sample came, went or changed, or a run went on.

    Only these files are served: those of the site, the recordings of listed samples (`recordings`), the previews of
    listed runs (`run_recordings`), and the songs of `corpus`, each by its exact path.
    """

    samples: list[Path]
    out: Path
    runs: list[Path] = field(default_factory=list)
    corpus: ShardRecordings | None = None
    listed: SampleList = field(default_factory=lambda: SampleList([], []))
    by_name: dict[str, ListedSample] = field(default_factory=dict)
    recordings: set[str] = field(default_factory=set)  # paths of samples that may be served
    run_recordings: set[str] = field(default_factory=set)  # and of the runs' previews
    modified: dict[str, int] | None = None  # path of a sample -> time in ns, at the last refresh
    runs_written: float = -RUNS_INTERVAL_SECONDS
    lock: Lock = field(default_factory=Lock)

    def refresh(self) -> None:
        """Look at the folders; costs a stat a sample when nothing changed."""
        with self.lock:
            modified = {}
            for path, _ in find_samples(self.samples):
                if path.exists():
                    modified[str(path)] = path.stat().st_mtime_ns
            if modified != self.modified:
                self.listed = write_samples(self.samples, self.out)
                self.by_name = {}
                self.recordings = set()
                for sample in self.listed.samples:
                    self.by_name[sample.name] = sample
                    self.recordings.update(map(str, sample.audio.values()))
                self.modified = modified
            if time.monotonic() > self.runs_written + RUNS_INTERVAL_SECONDS:
                runs = write_runs(self.runs, self.out)
                self.run_recordings = set()
                for run in runs:
                    for preview in run.previews:
                        self.run_recordings.add(str(preview.path))
                self.runs_written = time.monotonic()

    @property
    def base(self) -> str:
        """The folder that holds site and samples: addresses are paths from it, so the links of the pages are right."""
        return os.path.commonpath([self.out, *self.samples, *self.runs])

    def address(self, path: Path) -> str:
        return "/" + site_files.relative_url(path, Path(self.base))

    def page(self, sample: ListedSample) -> Path:
        return self.out / "sample" / f"{site_files.safe_name(sample.name)}.html"


class StaticPages:
    """GET of anything that is no part of the API. `abilities` is what the pages learn of their server."""

    def __init__(self, library: Library, abilities: dict[str, Any]) -> None:
        self.library = library
        self.script = f'"use strict";\nconst served = {json.dumps(abilities)};\n'

    def get(self, request: Request) -> Response:
        """The site's files and the recordings it knows, by their exact paths; 404 for anything else."""
        library = self.library
        address = os.fsdecode(unquote_to_bytes(request.scope["raw_path"].split(b"?")[0]))
        if address == "/":
            return RedirectResponse(library.address(library.out / "index.html"), 303)
        path = os.path.normpath(library.base + address)
        if "\0" in path:  # no file has such a name, and the system refuses to look for it
            raise HTTPException(404)
        if path == str(library.out / "static" / "served.js"):
            headers = {"Cache-Control": "no-store"}
            return Response(self.script, media_type="text/javascript", headers=headers)
        if path in (str(library.out / "index.html"), str(library.out / "runs.html")):
            library.refresh()
        song = library.corpus.get(path, request) if library.corpus else None
        if song is not None:
            return song
        is_recording = path in library.recordings or path in library.run_recordings
        if is_recording or is_inside(path, library.out):
            return file_response(Path(path))
        raise HTTPException(404)


def is_inside(path: str, folder: Path) -> bool:
    """Whether `path` lies in `folder`, also after every symbolic link was followed."""
    real_folder = os.path.realpath(folder) + os.sep
    return path.startswith(f"{folder}{os.sep}") and os.path.realpath(path).startswith(real_folder)


def file_response(path: Path) -> Response:
    """The file at `path`, or the range of it that is asked for; status 404 if it is gone."""
    if not path.is_file():
        raise HTTPException(404)
    media_type = MEDIA_TYPES.get(path.suffix)
    return FileResponse(path, media_type=media_type, headers={"Cache-Control": "no-cache"})


class AccessGuard:
    """Around everything: who may ask, and what a browser may do with the answers.

    On loopback the Host header must name loopback, or a page of another site could reach this server under a name of
    its own (DNS rebinding). Elsewhere every request needs the token: once in the address, then in a cookie. A request
    that changes something must come from our own pages.
    """

    def __init__(self, app: ASGIApp, token: str | None, nonce: str) -> None:
        self.app = app
        self.token = token
        self.headers = {
            "Content-Security-Policy": POLICY.format(nonce=nonce),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        answer = self.refuse(scope) or self.app
        await answer(scope, receive, send_guarded)

    def refuse(self, scope: Scope) -> Response | None:
        """The answer to a request that may not be asked; None for one that may."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.token is None:
            if host.rpartition(":")[0] not in LOOPBACK_HOSTS and host not in LOOPBACK_HOSTS:
                return PlainTextResponse("This server answers on loopback alone.\n", 403)
        else:
            answer = self.check_token(scope, headers, self.token)
            if answer is not None:
                return answer
        origin = headers.get("origin")
        changes_something = scope["method"] not in ("GET", "HEAD")
        if changes_something and origin is not None and urlsplit(origin).netloc != host:
            return PlainTextResponse("Only this server's own pages may ask for that.\n", 403)
        return None

    def check_token(self, scope: Scope, headers: Headers, token: str) -> Response | None:
        """None if the token was sent; from an address it moves into a cookie, so that it is seen no longer."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        # Compared in constant time, so that its letters cannot be guessed one by one.
        if secrets.compare_digest(query.get("token", [""])[0].encode(), token.encode()):
            answer = RedirectResponse(scope["raw_path"].split(b"?")[0].decode("latin-1"), 303)
            answer.set_cookie(COOKIE, token, httponly=True, samesite="strict")
            return answer
        cookie = Request(scope).cookies.get(COOKIE, "")
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        for sent in (cookie, bearer):
            if secrets.compare_digest(sent.encode(), token.encode()):
                return None
        return PlainTextResponse("Open the address with the token that the server printed.\n", 401)
