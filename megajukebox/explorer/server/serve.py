"""Runs the pages' server. The only file that imports uvicorn."""

import socket

import uvicorn
from starlette.types import ASGIApp

from megajukebox.common.errors import UserError

MAX_CONNECTIONS = 128  # at once; more are refused with 503
SHUTDOWN_SECONDS = 2  # that open downloads have when the server ends


def run(app: ASGIApp, host: str, port: int, token: str | None) -> None:
    """Serve until interrupted; prints the address once it can be opened.

    Raises:
        UserError: the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host} port {port} ({error.strerror}); choose another --port"
        ) from None
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{listening.getsockname()[1]}/"
    print(f"{address}?token={token}" if token else address, flush=True)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        lifespan="off",
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    uvicorn.Server(config).run(sockets=[listening])
