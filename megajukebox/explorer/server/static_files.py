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
from megajukebox.explorer.site_builder import Listed, write_runs, write_samples

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
COOKIE = "megajukebox"
RUNS_EVERY = 10.0  # seconds between two writings of the runs' pages
BLOCK = 1 << 16  # bytes of a song sent at a time
AUDIO = {".wav": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg", ".mp3": "audio/mpeg"}


class Recordings:
    """The songs of a shard set that are heard straight out of its tars, by the paths that the pages name."""

    def __init__(self, shards: ShardSet, songs: list[CorpusSong]) -> None:
        self.shards = shards
        whole = [song for song in songs if song.excerpt.seconds is None and song.audio]
        self.rows = {str(song.audio["original"]): song.row for song in whole}

    def get(self, path: str, request: Request) -> Response | None:
        if path not in self.rows:
            return None
        reader = self.shards.open_member(self.rows[path], "audio")
        first, last, status = asked_range(request.headers.get("range"), reader.size)
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Length": str(last - first + 1),
            "Cache-Control": "no-cache",
        }
        if status == 206:
            headers["Content-Range"] = f"bytes {first}-{last}/{reader.size}"
        return StreamingResponse(
            blocks(reader, first, last), status, headers, AUDIO.get(Path(path).suffix)
        )


def asked_range(header: str | None, size: int) -> tuple[int, int, int]:
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


def blocks(reader: Any, first: int, last: int) -> Iterator[bytes]:
    with reader:
        reader.seek(first)
        while first <= last and (block := reader.read(min(BLOCK, last - first + 1))):
            first += len(block)
            yield block


@dataclass
class Library:
    """What is shown, and its site at `out`: built anew when a sample came, went or changed, or a run went on."""

    samples: list[Path]
    out: Path
    runs: list[Path] = field(default_factory=list)
    corpus: Recordings | None = None
    listed: Listed = field(default_factory=lambda: Listed([], []))
    by_name: dict[str, ListedSample] = field(default_factory=dict)
    recordings: set[str] = field(default_factory=set)  # paths of samples that may be served
    run_recordings: set[str] = field(default_factory=set)  # and of what runs keep
    seen: dict[str, int] | None = None
    runs_written: float = -RUNS_EVERY
    lock: Lock = field(default_factory=Lock)

    def refresh(self) -> None:
        """Look at the folders; costs a stat a sample when nothing changed."""
        with self.lock:
            now = {
                str(path): path.stat().st_mtime_ns
                for path, _ in find_samples(self.samples)
                if path.exists()
            }
            if now != self.seen:
                self.listed = write_samples(self.samples, self.out)
                self.by_name = {sample.name: sample for sample in self.listed.samples}
                self.recordings = {
                    str(path) for sample in self.listed.samples for path in sample.audio.values()
                }
                self.seen = now
            if time.monotonic() > self.runs_written + RUNS_EVERY:
                runs = write_runs(self.runs, self.out)
                self.run_recordings = {str(sample.path) for run in runs for sample in run.samples}
                self.runs_written = time.monotonic()

    def may_serve(self, path: str) -> bool:
        return path in self.recordings or path in self.run_recordings or inside(path, self.out)

    @property
    def base(self) -> str:
        """The folder that holds site and samples: addresses are paths from it, so the links of the pages are right."""
        return os.path.commonpath([self.out, *self.samples, *self.runs])

    def address(self, path: Path) -> str:
        return "/" + site_files.relative_url(path, Path(self.base))

    def page(self, sample: ListedSample) -> Path:
        return self.out / "sample" / f"{site_files.safe_name(sample.name)}.html"


class Pages:
    """GET of anything that is no part of the API."""

    def __init__(self, library: Library, abilities: dict[str, Any]) -> None:
        self.library = library
        self.script = f'"use strict";\nconst served = {json.dumps(abilities)};\n'

    def get(self, request: Request) -> Response:
        """The site's files and the recordings it knows, by their exact paths. Anything else is not there."""
        given = os.fsdecode(unquote_to_bytes(request.scope["raw_path"].split(b"?")[0]))
        if given == "/":
            return RedirectResponse(self.library.address(self.library.out / "index.html"), 303)
        path = os.path.normpath(self.library.base + given)
        if "\0" in path:
            raise HTTPException(
                404
            )  # no file has such a name, and the system refuses to look for it
        if path == str(self.library.out / "static" / "served.js"):
            return Response(
                self.script, media_type="text/javascript", headers={"Cache-Control": "no-store"}
            )
        if path in (str(self.library.out / name) for name in ("index.html", "runs.html")):
            self.library.refresh()
        corpus = self.library.corpus
        if corpus and (member := corpus.get(path, request)):
            return member
        if self.library.may_serve(path):
            return file_response(Path(path))
        raise HTTPException(404)


def inside(path: str, folder: Path) -> bool:
    """Whether `path` lies in `folder`, also after every symbolic link was followed."""
    return path.startswith(f"{folder}{os.sep}") and os.path.realpath(path).startswith(
        os.path.realpath(folder) + os.sep
    )


def file_response(path: Path) -> Response:
    if not path.is_file():
        raise HTTPException(404)
    return FileResponse(
        path, media_type=AUDIO.get(path.suffix), headers={"Cache-Control": "no-cache"}
    )


class Guard:
    """Around everything: who may ask, and what a browser may do with the answers.

    On loopback the Host header must name loopback, or a page of another site could reach this server under a name of
    its own (DNS rebinding). Elsewhere every request needs the token: once in the address, then in a cookie. A request
    that changes something must come from our own pages.
    """

    def __init__(self, app: ASGIApp, token: str | None, nonce: str) -> None:
        self.app, self.token = app, token
        policy = (
            f"default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; img-src 'self' data:;"
            " media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        )
        self.headers = {
            "Content-Security-Policy": policy,
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

        answer = self.refusal(scope) or self.app
        await answer(scope, receive, send_guarded)

    def refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.token is None and host.rpartition(":")[0] not in LOOPBACK and host not in LOOPBACK:
            return PlainTextResponse("This server answers on loopback alone.\n", 403)
        if self.token is not None and (answer := self.ask_token(scope, headers)):
            return answer
        origin = headers.get("origin")
        if (
            scope["method"] not in ("GET", "HEAD")
            and origin is not None
            and urlsplit(origin).netloc != host
        ):
            return PlainTextResponse("Only this server's own pages may ask for that.\n", 403)
        return None

    def ask_token(self, scope: Scope, headers: Headers) -> Response | None:
        """None if the token was given; from an address it moves into a cookie, so that it is seen no longer."""
        assert self.token is not None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if secrets.compare_digest(given.encode(), self.token.encode()):
            answer = RedirectResponse(scope["raw_path"].split(b"?")[0].decode("latin-1"), 303)
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
            return answer
        kept = Request(scope).cookies.get(COOKIE, "")
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if any(secrets.compare_digest(one.encode(), self.token.encode()) for one in (kept, bearer)):
            return None
        return PlainTextResponse("Open the address with the token that the server printed.\n", 401)
