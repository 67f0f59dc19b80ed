"""The pages' own server: the files of the site, the recordings of the samples, and nothing else of the disk."""

import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, unquote_to_bytes, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from megajukebox.explorer import files
from megajukebox.explorer.building import Listed, write_samples
from megajukebox.explorer.records import Sample, find_samples

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
COOKIE = "megajukebox"
AUDIO = {".wav": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg", ".mp3": "audio/mpeg"}


@dataclass
class Library:
    """The samples that are shown, and their site at `out`; built anew when a sample came, went or changed."""

    samples: list[Path]
    out: Path
    listed: Listed = field(default_factory=lambda: Listed([], []))
    by_name: dict[str, Sample] = field(default_factory=dict)
    recordings: set[str] = field(default_factory=set)  # paths that may be served beside those in `out`
    seen: dict[str, int] | None = None
    lock: Lock = field(default_factory=Lock)

    def refresh(self) -> None:
        """Look at the folders; costs a stat a sample when nothing changed."""
        with self.lock:
            now = {str(path): path.stat().st_mtime_ns for path, _ in find_samples(self.samples) if path.exists()}
            if now != self.seen:
                self.listed = write_samples(self.samples, self.out)
                self.by_name = {sample.name: sample for sample in self.listed.samples}
                self.recordings = {str(path) for sample in self.listed.samples for path in sample.audio.values()}
                self.seen = now

    @property
    def base(self) -> str:
        """The folder that holds site and samples: addresses are paths from it, so the links of the pages are right."""
        return os.path.commonpath([self.out, *self.samples])

    def address(self, path: Path) -> str:
        return "/" + files.relative_url(path, Path(self.base))

    def page(self, sample: Sample) -> Path:
        return self.out / "sample" / f"{files.safe_name(sample.name)}.html"


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
            raise HTTPException(404)  # no file has such a name, and the system refuses to look for it
        if path == str(self.library.out / "static" / "served.js"):
            return Response(self.script, media_type="text/javascript", headers={"Cache-Control": "no-store"})
        if path == str(self.library.out / "index.html"):
            self.library.refresh()
        if path in self.library.recordings or inside(path, self.library.out):
            return file_response(Path(path))
        raise HTTPException(404)


def inside(path: str, folder: Path) -> bool:
    """Whether `path` lies in `folder`, also after every symbolic link was followed."""
    return path.startswith(f"{folder}{os.sep}") and os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep)


def file_response(path: Path) -> Response:
    if not path.is_file():
        raise HTTPException(404)
    return FileResponse(path, media_type=AUDIO.get(path.suffix), headers={"Cache-Control": "no-cache"})


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
        if scope["method"] not in ("GET", "HEAD") and origin is not None and urlsplit(origin).netloc != host:
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
