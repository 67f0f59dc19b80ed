"""The explorer's server as users start it: a process, found by the address that it prints."""

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from conftest import environment


@contextmanager
def serving(*arguments: str | Path, host: str = "127.0.0.1") -> Iterator[str]:
    """The address of `explore --serve` with these arguments, while the block lasts."""
    command = [
        sys.executable,
        "-m",
        "megajukebox.explore",
        "--serve",
        "--port",
        "0",
        "--host",
        host,
        *map(str, arguments),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        address = process.stdout.readline().strip()  # type: ignore[union-attr]
        assert address.startswith("http://"), process.stderr.read()  # type: ignore[union-attr]
        yield address
        assert process.poll() is None, "the server ended by itself"
    finally:
        process.terminate()
        process.communicate(timeout=120)


def ask(
    address: str, path: str, body: Any = None, method: str | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of one request whose path is sent as it is, dots and all."""
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname or "", place.port or 0, timeout=120)
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    try:
        connection.putrequest(method or ("GET" if body is None else "POST"), path, skip_host="Host" in headers)
        for name, value in {"Content-Length": str(len(content or b""))}.items() | headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(content)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def told(address: str, path: str, body: Any = None) -> Any:
    """The JSON that the server answers, whatever its status."""
    return json.loads(ask(address, path, body)[2])
