"""Runs the pages' server. The only file that imports uvicorn."""

import ipaddress
import socket

import uvicorn
from starlette.types import ASGIApp

AT_ONCE = 128  # connections; more are told to come back
LEAVE = 2  # seconds that open downloads have when the server ends


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(app: ASGIApp, host: str, port: int, token: str | None) -> None:
    """Serve until interrupted; prints the address once it can be opened. ValueError if the port is taken."""
    try:
        listening = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise ValueError(
            f"cannot listen on {host} port {port} ({error.strerror}); choose another --port"
        ) from None
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{listening.getsockname()[1]}/"
    print(f"{address}?token={token}" if token else address, flush=True)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, limit_concurrency=AT_ONCE, lifespan="off",
        timeout_graceful_shutdown=LEAVE,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listening])
