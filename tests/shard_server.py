"""A threaded HTTP server of one folder on loopback, whose answers can be spoilt: stalls, resets, 5xx, cut bodies."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class ShardServer(ThreadingHTTPServer):
    """`spoil[name]` is a list of faults, one used up by each request of that file: 503, "reset", "stall", "cut"."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder = folder
        self.spoil: dict[str, list[int | str]] = {}
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []  # (file, its Range header)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gave up is part of the tests."""


class Answer(BaseHTTPRequestHandler):
    server: ShardServer

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].lstrip("/")
        span = self.headers.get("Range")
        self.server.asked.append((name, span))
        faults = self.server.spoil.get(name, [])
        fault = faults.pop(0) if faults else None
        if isinstance(fault, int):
            self.send_error(fault)
        elif fault == "reset":
            self.connection.close()
        elif not (self.server.folder / name).is_file():
            self.send_error(404)
        else:
            self.send_file((self.server.folder / name).read_bytes(), span, fault)

    def send_file(self, data: bytes, span: str | None, fault: str | None) -> None:
        first, last = 0, len(data) - 1
        if span and self.server.ranges:
            low, _, high = span.removeprefix("bytes=").partition("-")
            first, last = int(low), min(int(high), last) if high else last
        body = data[first : last + 1]
        self.send_response(206 if span and self.server.ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
        if fault == "stall":
            time.sleep(3)
        if not fault:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@contextmanager
def serving(folder: Path) -> Iterator[ShardServer]:
    server = ShardServer(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
