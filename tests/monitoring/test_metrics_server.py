"""What the exporter's server answers to whom, and how many connections and threads it has at most."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from megajukebox.commands.exporter import Exporter
from megajukebox.monitoring.exporters import metrics_server
from megajukebox.monitoring.exporters.metrics_server import MetricsServer, application


@contextmanager
def serving(token: str | None = None, allowed: tuple[str, ...] = ()) -> Iterator[int]:
    server = MetricsServer(("127.0.0.1", 0), application(Exporter(runs=None), token, allowed))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def ask(port: int, *headers: str, path: str = "/", method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *headers, "", ""]
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall("\r\n".join(lines).encode())
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_on_loopback_only_its_names_and_those_allowed_are_answered() -> None:
    with serving(allowed=("metrics.example",)) as port:
        for host in (
            "127.0.0.1:9464",
            "localhost",
            "[::1]:9464",
            "metrics.example",
            "METRICS.example:1",
        ):
            assert b" 200 " in ask(port, f"Host: {host}").splitlines()[0]
        for host in ("evil.example", "evil.example:9464", "127.0.0.1.evil.example"):
            said = ask(port, f"Host: {host}", path="/metrics")
            assert b" 403 " in said.splitlines()[0] and b"--allow-host" in said
        assert b" 200 " in ask(port).splitlines()[0]  # a program that names no host is no browser
    with serving("t" * 20) as port:  # the token says enough: Prometheus comes by the node's name
        assert b" 200 " in ask(port, "Host: node1:9464", f"Authorization: Bearer {'t' * 20}")


def test_head_is_answered_as_get_without_the_body() -> None:
    """Probes of load balancers ask with HEAD (RFC 9110, section 9.3.2); it was 405, and `/` came with a body."""

    def fields(answer: bytes) -> list[bytes]:
        return [
            line for line in answer.splitlines() if not line.startswith((b"Date", b"Content-L"))
        ]

    with serving() as port:
        for path in ("/metrics", "/", "/other"):
            head, _, body = ask(port, "Host: localhost", path=path).partition(b"\r\n\r\n")
            without = ask(port, "Host: localhost", path=path, method="HEAD")
            assert without.endswith(b"\r\n\r\n")
            assert fields(without.rstrip()) == fields(head)
            assert b"Content-Length: " in without and (len(body) == 0) == (b"Length: 0" in without)
        refused = ask(port, "Host: evil.example", path="/metrics", method="HEAD")
        assert b" 403 " in refused.splitlines()[0]
        assert b" 405 " in ask(port, "Host: localhost", method="PUT").splitlines()[0]


def test_half_sent_requests_take_few_threads_and_keep_no_scrape_out() -> None:
    """600 connections were 174 threads after a second."""
    before = threading.active_count()
    with serving() as port:
        held = []
        for _ in range(200):
            connection = socket.create_connection(("127.0.0.1", port), timeout=60)
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
            held.append(connection)
        assert b" 200 " in ask(port, "Host: localhost", path="/metrics").splitlines()[0]
        assert threading.active_count() - before <= metrics_server.MAX_CONNECTIONS + 8
        for connection in held:
            connection.close()


def test_slow_headers_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "HEADER_SECONDS", 0.3)
    with serving() as port, socket.create_connection(("127.0.0.1", port), timeout=60) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert slow.recv(100) == b""
        assert b" 200 " in ask(port, "Host: localhost")
