"""Runs the pages' server. The only file that imports uvicorn."""

import asyncio
import itertools
import signal
import socket
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from megajukebox.common.errors import UserError
from megajukebox.explorer.server.access import ALLOWED

# A browser opens 6 connections to a server; everybody who comes through one tunnel or proxy has one address.
MAX_CONNECTIONS = 256
MAX_PER_ADDRESS = 64
HEADER_SECONDS = 10.0  # until the headers of a request are whole
BODY_SECONDS = 330.0  # until its body is; api.py has shorter ones for what it reads
REFUSED_SECONDS = 1.0  # that a refused connection has to read why
SHUTDOWN_SECONDS = 2  # that open downloads have when the server ends

REASONS = {
    408: "the request was not whole in time",
    429: "too many connections from this address; close some, or try again soon",
    503: "too many connections; try again soon",
}
PHRASES = {408: "Request Timeout", 429: "Too Many Requests", 503: "Service Unavailable"}


class BoundedProtocol(H11Protocol):
    """A connection that must get on, one of a bounded number.

        connected --headers, HEADER_SECONDS--> request --body, BODY_SECONDS--> answer --keep-alive--> next headers

    uvicorn itself bounds neither the time of a request nor the connections that send none. When all connections are
    taken, the oldest that never sent a request which may be asked (access.py) makes room: who only holds connections
    open cannot keep out anybody who sends requests.
    """

    numbers = itertools.count()
    deadline: asyncio.TimerHandle | None = None
    awaited: str | None = None  # what the deadline is for: headers, body
    refused = False

    @property
    def is_allowed(self) -> bool:
        """Whether its last request was let through by the guard."""
        return bool(self.scope) and bool(self.scope["state"].get(ALLOWED))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.number = next(self.numbers)
        others: list[Any] = [other for other in self.connections if other is not self]
        address = self.client[0] if self.client else ""
        from_there = [other for other in others if other.client and other.client[0] == address]
        if len(from_there) >= MAX_PER_ADDRESS and not make_room(from_there):
            self.refuse(429)
        elif len(others) >= MAX_CONNECTIONS and not make_room(others):
            self.refuse(503)
        else:
            self.watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_watching()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.refused:
            return
        super().data_received(data)
        self.watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.watch()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; what was begun for its first part is given up."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            super().send_400_response(msg)
        else:
            self.transport.close()
        self.give_up()

    def give_up(self) -> None:
        """Let the application know that nobody reads its answer any more."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def watch(self) -> None:
        """Set the deadline of what the connection waits for now."""
        awaited = None
        if self.conn.their_state is h11.IDLE:
            # Between two requests nothing is awaited: uvicorn's keep-alive ends that.
            is_first = self.cycle is None
            awaited = "headers" if is_first or self.conn.trailing_data[0] else None
        elif self.conn.their_state is h11.SEND_BODY:
            awaited = "body"
        if awaited == self.awaited:
            return
        self.stop_watching()
        self.awaited = awaited
        if awaited is not None and not self.transport.is_closing():
            seconds = HEADER_SECONDS if awaited == "headers" else BODY_SECONDS
            self.deadline = self.loop.call_later(seconds, self.refuse, 408)

    def stop_watching(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
        self.deadline = None
        self.awaited = None

    def refuse(self, status: int) -> None:
        """Say why, where no answer was begun, and close."""
        self.stop_watching()
        self.connections.discard(self)
        if self.refused or self.transport.is_closing():
            return
        self.refused = True
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body = f"{REASONS[status]}\n"
            self.transport.write(
                f"HTTP/1.1 {status} {PHRASES[status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
            )
        self.give_up()
        # At once, a client that is still sending would get a reset instead of the answer.
        self.loop.call_later(REFUSED_SECONDS, self.transport.close)


def make_room(connections: list[Any]) -> bool:
    """Close the oldest of `connections` that no request was allowed of; False if there is none."""
    unproven = [connection for connection in connections if not connection.is_allowed]
    if not unproven:
        return False
    min(unproven, key=lambda connection: connection.number).refuse(503)
    return True


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host} port {port} ({error.strerror}); choose another --port"
        ) from None


def run(app: ASGIApp, listening: socket.socket, host: str, token: str | None) -> None:
    """Serve until interrupted; prints the address once it can be opened, with the token if there is one."""
    port = listening.getsockname()[1]
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{port}/"
    print(f"{address}?token={token}" if token else address, flush=True)
    # uvicorn raises a signal again once its connections are closed, and a closed terminal sends one, too: so the caller
    # can still end its processes and remove its files.
    signal.signal(signal.SIGTERM, end)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
        signal.signal(signal.SIGHUP, end)
    bounded_server(app).run(sockets=[listening])


def bounded_server(app: ASGIApp) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return uvicorn.Server(config)


def end(number: int, _: object) -> None:
    raise SystemExit(128 + number)
