"""Serves /metrics and nothing else: no file, no path, no change. On other addresses than loopback only with a token."""

import hmac
import ipaddress
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SHORTEST_TOKEN = 16


def address_of(listen: str, token: str | None) -> tuple[str, int]:
    """`127.0.0.1:9464` as host and port. ValueError if other machines could connect and no token would stop them."""
    host, colon, port = listen.rpartition(":")
    host = host.strip("[]")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"--listen {listen!r} is not an address and a port, as in 127.0.0.1:9464")
    if not is_loopback(host) and token is None:
        raise ValueError(
            f"--listen {listen} can be reached from other machines; add --token-file FILE (Prometheus sends it as"
            " authorization: credentials_file), or listen on 127.0.0.1"
        )
    return host, int(port)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(path: Path | None) -> str | None:
    """The secret in a file that only its owner reads. Raises ValueError for one that is short or open to others."""
    if path is None:
        return None
    try:
        token, mode = path.read_text().strip(), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--token-file {path} cannot be read: {error}") from None
    if len(token) < SHORTEST_TOKEN:
        raise ValueError(
            f"--token-file {path} holds {len(token)} characters; write at least {SHORTEST_TOKEN} random ones"
        )
    if mode & 0o077:
        raise ValueError(f"--token-file {path} can be read by others; chmod 600 {path}")
    return token


class Server(ThreadingHTTPServer):
    """`render` makes the page; it is called by one request at a time."""

    daemon_threads = True

    def __init__(
        self, address: tuple[str, int], render: Callable[[], bytes], token: str | None
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.render, self.token, self.one_at_a_time = render, token, threading.Lock()
        super().__init__(address, MetricsHandler)


class MetricsHandler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "megajukebox", ""
    timeout = 30  # a client that says nothing does not hold a thread for ever

    def do_GET(self) -> None:
        if self.server.token is not None and not self.authorized(self.server.token):
            self.answer(401, b"a bearer token is needed\n")
        elif self.path.split("?")[0] == "/metrics":
            with self.server.one_at_a_time:
                page = self.server.render()
            self.answer(200, page, "text/plain; version=0.0.4; charset=utf-8")
        elif self.path == "/":
            self.answer(200, b"megajukebox exporter: see /metrics\n")
        else:
            self.answer(404, b"only /metrics is here\n")

    def authorized(self, token: str) -> bool:
        told = self.headers.get("Authorization", "")
        return hmac.compare_digest(told.encode(), f"Bearer {token}".encode())

    def answer(self, code: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(code)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "X-Content-Type-Options": "nosniff",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent: a scrape every few seconds is no news, and a request line may hold a secret."""
