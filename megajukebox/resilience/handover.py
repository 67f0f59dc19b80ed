"""Start a rank: in the warm standby of this node, which has imported torch already, or here if there is none.

    python megajukebox/resilience/handover.py train top_prior --out ...     # as `supervise` starts megajukebox/train.py

The launcher's process hands arguments, environment and output over and stays as the rank's shadow: it passes signals
on, ends as the rank ends, and if it is killed so is the rank. Nothing heavy is imported before that is decided.
"""

import json
import os
import signal
import socket
import stat
import struct
import sys
from contextlib import suppress
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__":  # its own folder would hide packages of the same names
    sys.path[:] = [
        path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent
    ]

from megajukebox.common.errors import UserError
from megajukebox.common.world import host, world

ADDRESS = "MEGAJUKEBOX_STANDBY"  # variable: where the standby listens, without the name of the node
STARTED = "MEGAJUKEBOX_START"  # variable: `warm`, or why this rank was started cold
ENTRIES = {name: f"megajukebox.{name}" for name in ("train", "distill", "doctor")}
TRAINING_ENTRIES = ("train", "distill")  # whose environment the next attempt will have too
REPLY_SECONDS = 5.0  # in which a standby that is alive answers
EXIT_RETRY = 75  # as in exit_codes.py, which this does without
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
LENGTH = struct.Struct("!Q")
# Files whose change means that the standby has imported something else than a new process would.
WATCHED_PACKAGES = ("torch", "deepspeed")


def main() -> None:
    entry, arguments = split_arguments(sys.argv[1:])
    address = os.environ.get(ADDRESS)
    if address:
        with suppress(UserError):  # the entry itself will report it
            world()  # for a process that is no child of the launcher
        reason = hand_over(address, entry, arguments)
        os.environ[STARTED] = reason
        if entry in TRAINING_ENTRIES and os.environ.get("LOCAL_RANK") == "0":
            print(f"{entry}: cold start: {reason}", file=sys.stderr, flush=True)
            announce(address)
    run_entry(entry, arguments)


def split_arguments(words: list[str]) -> tuple[str, list[str]]:
    """The entry and its arguments; what a launcher puts before the entry (`--local_rank=0`) goes behind."""
    for index, word in enumerate(words):
        if word in ENTRIES:
            return word, [*words[index + 1 :], *words[:index]]
    raise SystemExit(f"handover: none of {', '.join(ENTRIES)} is in {' '.join(words)}")


def run_entry(entry: str, arguments: list[str]) -> None:
    """Run the entry in this process, as its file would be run."""
    from megajukebox.common.command_line import run_command  # a third of a second

    sys.argv = [f"megajukebox {entry}", *arguments]
    run_command(import_module(ENTRIES[entry]).main, entry)


# ---- What the standby must have alike ---------------------------------------------------------------------------------


def code_stamp() -> str:
    """A digest of the code that an entry would import now, by the times and sizes of its files."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    for package in WATCHED_PACKAGES:
        found = find_spec(package)
        if found and found.origin:
            files.append(Path(found.origin))
    digest = sha256()
    for path in files:
        facts = path.stat()
        digest.update(f"{path} {facts.st_mtime_ns} {facts.st_size}\n".encode())
    return digest.hexdigest()


def socket_path(address: str, purpose: str) -> Path:
    """Where the standby of this node listens: for ranks to start (`start`), or for what is to come (`control`)."""
    return Path(address) / f"{host()}.{purpose}"


def connected(path: Path) -> socket.socket:
    """A connection to a standby of this user's own. Raises OSError where there is none."""
    folder = path.parent.lstat()
    if folder.st_uid != os.getuid() or stat.S_IMODE(folder.st_mode) & 0o077:
        raise PermissionError(f"{path.parent} is not this user's alone")
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(REPLY_SECONDS)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def send(connection: socket.socket, message: dict[str, Any], files: tuple[int, ...] = ()) -> None:
    body = json.dumps(message).encode()
    socket.send_fds(connection, [LENGTH.pack(len(body))], files)
    connection.sendall(body)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A message, and the open files that came with it. Raises OSError or EOFError."""
    head, files, _, _ = socket.recv_fds(connection, LENGTH.size, len((0, 1, 2)))
    while len(head) < LENGTH.size:
        head += _some(connection, LENGTH.size - len(head))
    (length,) = LENGTH.unpack(head)
    body = b""
    while len(body) < length:
        body += _some(connection, length - len(body))
    return json.loads(body), files


def _some(connection: socket.socket, most: int) -> bytes:
    data = connection.recv(most)
    if not data:
        raise EOFError("the other end is gone")
    return data


# ---- The launcher's process -------------------------------------------------------------------------------------------


def announce(address: str) -> None:
    """Tell the standby the environment that the next attempt will have."""
    with suppress(OSError), connected(socket_path(address, "control")) as connection:
        send(connection, {"environment": dict(os.environ), "stamp": code_stamp()})


def prepare_next() -> None:
    """Let the standby of this node, if there is one, import what the next attempt needs: training has begun."""
    address = os.environ.get(ADDRESS)
    if address and os.environ.get("LOCAL_RANK", "0") == "0":
        with suppress(OSError), connected(socket_path(address, "control")) as connection:
            # Half of what is imported is imported late: DeepSpeed's and torch's own first uses.
            send(connection, {"modules": [name for name in sys.modules if name != "__main__"]})


def hand_over(address: str, entry: str, arguments: list[str]) -> str:
    """Let the standby run the entry, and end as it ends. Returns only if it does not: why."""
    try:
        connection = connected(socket_path(address, "start"))
    except FileNotFoundError:
        return "no standby is warm yet"
    except OSError as error:
        return f"the standby does not answer: {error.strerror or error}"
    request = {
        "entry": entry,
        "arguments": arguments,
        "environment": dict(os.environ),
        "stamp": code_stamp(),
        "folder": os.getcwd(),
        "affinity": sorted(os.sched_getaffinity(0)),
    }
    try:
        send(connection, request, files=(0, 1, 2))
        reply, _ = receive(connection)
    except (OSError, EOFError) as error:
        return f"the standby does not answer: {error}"
    if "refused" in reply:
        return reply["refused"]
    _shadow(connection)


def _shadow(connection: socket.socket) -> NoReturn:
    """Stand for the rank that now begins in the standby."""

    def pass_on(number: int, frame: object) -> None:
        with suppress(OSError):
            send(connection, {"signal": number})

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    connection.settimeout(None)
    try:
        send(connection, {"go": True})
        answer, _ = receive(connection)
    except (OSError, EOFError):
        print("handover: the standby died, and the rank with it", file=sys.stderr, flush=True)
        os._exit(EXIT_RETRY)
    status = answer["status"]
    if os.WIFSIGNALED(status):
        with suppress(OSError):  # nobody can change what SIGKILL does
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
