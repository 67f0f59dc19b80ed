"""Serves /metrics and nothing else: no file, no path, no change. On other addresses than loopback only with a token."""

import hmac
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.registry import Collector

from megajukebox.common.addresses import is_loopback
from megajukebox.common.errors import UserError

MIN_TOKEN = 16  # characters
CLIENT_SECONDS = 30  # a client that sends nothing does not hold a thread for ever
PLAIN = ("Content-Type", "text/plain; charset=utf-8")
EVERYWHERE = [("X-Content-Type-Options", "nosniff"), ("Server", "megajukebox")]
NO_TOKEN = ("401 Unauthorized", b"a bearer token is needed\n")
READ_ONLY = ("405 Method Not Allowed", b"only GET is allowed\n")
HOME = ("200 OK", b"megajukebox exporter: see /metrics\n")
NOT_FOUND = ("404 Not Found", b"only /metrics is here\n")

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def parse_address(listen: str, token: str | None) -> tuple[str, int]:
    """`127.0.0.1:9464` as host and port.

    Raises:
        UserError: it is no address, or other machines could connect and no token would stop them.
    """
    host, colon, port = listen.rpartition(":")
    host = host.strip("[]")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise UserError(f"--listen {listen!r} is not an address and a port, as in 127.0.0.1:9464")
    if not is_loopback(host) and token is None:
        raise UserError(
            f"--listen {listen} can be reached from other machines; add --token-file FILE (Prometheus sends it as"
            " authorization: credentials_file), or listen on 127.0.0.1"
        )
    return host, int(port)


def read_token(path: Path | None) -> str | None:
    """The secret in a file that only its owner reads.

    Raises:
        UserError: it cannot be read, is short, or is open to others.
    """
    if path is None:
        return None
    try:
        token = path.read_text().strip()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--token-file {path} cannot be read: {error}") from None
    if len(token) < MIN_TOKEN:
        raise UserError(
            f"--token-file {path} holds {len(token)} characters; write at least {MIN_TOKEN} random ones"
        )
    if mode & 0o077:
        raise UserError(f"--token-file {path} can be read by others; chmod 600 {path}")
    return token


def application(collector: Collector, token: str | None) -> Application:
    """prometheus_client's page at /metrics, behind the token."""
    registry = CollectorRegistry()
    registry.register(collector)
    metrics: Application = make_wsgi_app(registry)

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            return start_response(status, headers + EVERYWHERE, *more)

        sent = environ.get("HTTP_AUTHORIZATION", "").encode("utf-8", "replace")
        if token is not None and not hmac.compare_digest(sent, f"Bearer {token}".encode()):
            status, body = NO_TOKEN
        elif environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            status, body = READ_ONLY
        elif environ["PATH_INFO"] == "/metrics":
            return metrics(environ, start)
        else:
            status, body = HOME if environ["PATH_INFO"] == "/" else NOT_FOUND
        start(status, [PLAIN, ("Content-Length", str(len(body)))])
        return [body]

    return serve


class MetricsServer(ThreadingMixIn, WSGIServer):
    """Serves an application at an address, of either family."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], serve: Application) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, SilentHandler)
        self.set_app(serve)


class SilentHandler(WSGIRequestHandler):
    timeout = CLIENT_SECONDS

    def log_message(self, format: str, *args: object) -> None:
        """Silent: a scrape every few seconds is no news, and a request line may hold a secret."""
