"""Who may ask the pages' server: its owner's token, its own names, its own pages."""

import secrets
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from megajukebox.common.addresses import names_this_machine
from megajukebox.explorer.pages.no_token import no_token_page

ALLOWED = "allowed"  # in the state of a request that the guard let through; connections.py reads it
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; img-src 'self' data:;"
    " media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
NO_TOKEN_POLICY = (
    "default-src 'none'; style-src 'nonce-{nonce}'; img-src data:; base-uri 'none'; form-action 'self';"
    " frame-ancestors 'none'"
)
NO_TOKEN = "open the address with the token that `megajukebox explore serve` printed"


@dataclass(frozen=True)
class AccessRules:
    """What a request needs."""

    token: str | None  # None: none is needed
    port: int  # that the server listens on
    on_loopback: bool = True  # then the Host header must name loopback
    nonce: str = field(default_factory=lambda: secrets.token_urlsafe(16))  # of styles

    @property
    def cookie(self) -> str:
        """Cookies know no port: by its name, servers of one host leave each other's alone."""
        return f"megajukebox-{self.port}"


class AccessGuard:
    """Around everything: who may ask, and what a browser may do with the answers.

    Every request needs the token: once in the address, then in a cookie. On loopback the Host header must name
    loopback, or a page of another site could reach this server under a name of its own (DNS rebinding). A request that
    changes something must come from our own pages.
    """

    def __init__(self, app: ASGIApp, rules: AccessRules) -> None:
        self.app = app
        self.rules = rules
        self.headers = {
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        self.policy = POLICY.format(nonce=rules.nonce)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self.headers)
                headers.setdefault("Content-Security-Policy", self.policy)
            await send(message)

        refusal = self.refuse(scope)
        if refusal is None:
            scope.setdefault("state", {})[ALLOWED] = True
            return await self.app(scope, receive, send_guarded)
        # What it still wants to send is not waited for.
        refusal.headers["Connection"] = "close"
        await refusal(scope, receive, send_guarded)

    def refuse(self, scope: Scope) -> Response | None:
        """The answer to a request that may not be asked; None for one that may."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.rules.on_loopback and not names_this_machine(host):
            return PlainTextResponse("This server answers on loopback alone.\n", 403)
        if self.rules.token is not None:
            answer = self.check_token(scope, headers, self.rules.token)
            if answer is not None:
                return answer
        origin = headers.get("origin")
        own = (None, f"http://{host}", f"https://{host}")
        if scope["method"] not in ("GET", "HEAD") and origin not in own:
            return PlainTextResponse("Only this server's own pages may ask for that.\n", 403)
        return None

    def check_token(self, scope: Scope, headers: Headers, token: str) -> Response | None:
        """None if the token was sent; from an address it moves into a cookie, so that it is seen no longer."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        in_address = query.get("token", [""])[0].strip()
        # Compared in constant time, so that its letters cannot be guessed one by one.
        if secrets.compare_digest(in_address.encode(), token.encode()):
            answer = RedirectResponse(own_path(scope["raw_path"]), 303)
            answer.set_cookie(self.rules.cookie, token, httponly=True, samesite="strict")
            return answer
        cookie = Request(scope).cookies.get(self.rules.cookie, "")
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        for sent in (cookie, bearer):
            if secrets.compare_digest(sent.encode(), token.encode()):
                return None
        if scope["path"].startswith("/api/"):
            return JSONResponse({"error": NO_TOKEN}, 401)
        nonce = secrets.token_urlsafe(16)
        page = no_token_page(nonce, is_wrong=bool(in_address))
        policy = {"Content-Security-Policy": NO_TOKEN_POLICY.format(nonce=nonce)}
        return HTMLResponse(page, 401, policy)


def own_path(raw_path: bytes) -> str:
    """The path of a request as one of this server: `//host` and `/\\host` would lead a browser to another one."""
    path = raw_path.split(b"?")[0].decode("latin-1")
    return "/" + path.lstrip("/\\") if path.startswith("/") else "/"
