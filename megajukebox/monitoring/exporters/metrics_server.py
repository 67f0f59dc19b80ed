"""Serves /metrics and nothing else: no file, no path, no change. On other addresses than loopback only with a token."""

import contextlib
import hmac
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.registry import Collector

from megajukebox.common.addresses import is_loopback, names_this_machine
from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import open_given, read_all

MIN_TOKEN = 16  # characters
MAX_TOKEN_BYTES = 4096
HEADER_SECONDS = 10.0  # until the headers of a request are whole
ANSWER_SECONDS = 30.0  # until an answer is read
MAX_CONNECTIONS = 32  # each has a thread; Prometheus opens one
MAX_ANSWERS = 8  # at once; scrapes wait for each other
PLAIN = ("Content-Type", "text/plain; charset=utf-8")
EVERYWHERE = [("X-Content-Type-Options", "nosniff"), ("Server", "megajukebox")]
WRONG_HOST = (
    "403 Forbidden",
    b"this exporter answers to loopback names; add others with --allow-host\n",
)
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
        file = open_given(path)
        mode = os.fstat(file.fileno()).st_mode
        token = read_all(file, MAX_TOKEN_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--token-file {path} cannot be read: {error}") from None
    if len(token) < MIN_TOKEN:
        raise UserError(
            f"--token-file {path} holds {len(token)} characters; write at least {MIN_TOKEN} random ones"
        )
    if mode & 0o077:
        raise UserError(f"--token-file {path} can be read by others; chmod 600 {path}")
    return token


def application(
    collector: Collector, token: str | None, allowed_hosts: Collection[str] = ()
) -> Application:
    """prometheus_client's page at /metrics, behind the token.

    Without a token, the Host header must name loopback or one of `allowed_hosts`: a page in somebody's browser can
    reach loopback under a name of its own (DNS rebinding).
    """
    registry = CollectorRegistry()
    registry.register(collector)
    metrics: Application = make_wsgi_app(registry)

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            return start_response(status, headers + EVERYWHERE, *more)

        sent = environ.get("HTTP_AUTHORIZATION", "").encode("utf-8", "replace")
        host = environ.get("HTTP_HOST")  # every browser sends it
        if token is None and host is not None and not names_this_machine(host, allowed_hosts):
            status, body = WRONG_HOST
        elif token is not None and not hmac.compare_digest(sent, f"Bearer {token}".encode()):
            status, body = NO_TOKEN
        elif environ["REQUEST_METHOD"] != "GET":
            status, body = READ_ONLY
        elif environ["PATH_INFO"] == "/metrics":
            return metrics(environ, start)
        else:
            status, body = HOME if environ["PATH_INFO"] == "/" else NOT_FOUND
        start(status, [PLAIN, ("Content-Length", str(len(body)))])
        return [body]

    return with_head(serve)


def with_head(serve: Application) -> Application:
    """`serve`, which knows GET, with HEAD as well: the same headers without the body (RFC 9110, section 9.3.2)."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "HEAD":
            return serve(environ, start_response)
        started: list[tuple[str, list[tuple[str, str]]]] = []

        def start(status: str, headers: list[tuple[str, str]]) -> None:
            started.append((status, headers))

        body = b"".join(serve({**environ, "REQUEST_METHOD": "GET"}, start))
        status, headers = started[0]
        fields = [field for field in headers if field[0] != "Content-Length"]
        start_response(status, [*fields, ("Content-Length", str(len(body)))])
        return []

    return answer


class MetricsServer(ThreadingMixIn, WSGIServer):
    """Serves an application at an address, of either family, with a bounded number of threads.

    Whoever only holds connections open keeps nobody out: when all are taken, the oldest without a whole request ends.
    """

    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, address: tuple[str, int], serve: Application) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.lock = threading.Lock()
        self.waiting: dict[socket.socket, float] = {}  # for headers -> since when, oldest first
        self.answering: set[socket.socket] = set()
        super().__init__(address, SilentHandler)
        self.set_app(serve)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a new connection."""
        with self.lock:
            self.waiting[request] = time.monotonic()
            excess = len(self.waiting) + len(self.answering) - MAX_CONNECTIONS
            for connection in list(self.waiting)[: max(0, excess)]:
                self._end(connection)
        super().process_request(request, client_address)

    def begin_answer(self, request: socket.socket) -> bool:
        """Note that the headers of a connection are whole; False if it was ended, or too many are answered already."""
        with self.lock:
            if self.waiting.pop(request, None) is None or len(self.answering) >= MAX_ANSWERS:
                return False
            self.answering.add(request)
            return True

    def service_actions(self) -> None:
        """End connections whose headers take too long; called twice a second."""
        oldest = time.monotonic() - HEADER_SECONDS
        with self.lock:
            for connection, since in list(self.waiting.items()):
                if since < oldest:
                    self._end(connection)

    def shutdown_request(self, request: Any) -> None:
        with self.lock:
            self.waiting.pop(request, None)
            self.answering.discard(request)
        super().shutdown_request(request)

    def _end(self, connection: socket.socket) -> None:
        """Wake the thread of a connection, which closes it. The lock is held."""
        del self.waiting[connection]
        with contextlib.suppress(OSError):  # its client was faster
            connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent: a client that goes away is no news."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class SilentHandler(WSGIRequestHandler):
    timeout = ANSWER_SECONDS
    server: MetricsServer

    def parse_request(self) -> bool:
        """Read the headers; False if they are none, or if too many requests are answered already."""
        if not super().parse_request():
            return False
        if not self.server.begin_answer(self.connection):
            self.send_error(503, "too many scrapes at once; try again soon")
            return False
        return True

    def log_message(self, format: str, *args: object) -> None:
        """Silent: a scrape every few seconds is no news, and a request line may hold a secret."""
