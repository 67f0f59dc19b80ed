"""The warm standby of a node: a process that has imported torch and DeepSpeed, and becomes a copy of itself a rank.

    python -m megajukebox.resilience.standby ADDRESS        # `supervise` starts it, one on every node

It is idle and small until training has begun: only then it starts itself anew in the environment that the ranks have,
and imports what they do. A restart then forks it, once a rank: a fork has all that is imported and shares its memory.
It never computes, starts no thread and makes no CUDA context; one that CUDA has been initialised in would make broken
ranks and refuses to start any. Whoever it refuses starts cold, as without it (handover.py).
"""

import ctypes
import gc
import json
import os
import selectors
import signal
import socket
import stat
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from megajukebox.common.child_processes import module_command
from megajukebox.common.files import make_private_folder
from megajukebox.resilience.handover import (
    ENTRIES,
    REPLY_SECONDS,
    STARTED,
    code_stamp,
    receive,
    run_entry,
    send,
    socket_path,
)

# What differs from rank to rank and from attempt to attempt, and is read after the start: launchers' places and
# addresses, the GPUs that a rank sees. Every other variable must be as it was when the standby imported.
VARYING = (
    *(
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "LOCAL_SIZE",
        "GROUP_RANK",
        "ROLE_RANK",
    ),
    *("CROSS_RANK", "CROSS_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("PWD", "OLDPWD", "SHLVL", "_", STARTED),
)
VARYING_PREFIXES = ("SLURM", "SRUN_", "PMI", "PRTE", "OMPI", "HYDRA", "IPATH", "PSM2")
# torch then counts GPUs through NVML, and a fork may still use CUDA.
WITHOUT_CUDA = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
JOINING_MODULES = (
    "mpi4py",
)  # to import them joins the launcher's job as one of its ranks, and starts threads
WARM = "MEGAJUKEBOX_STANDBY_WARM"  # variable: the stamp of the code that this process is to import
PR_SET_PDEATHSIG = 1  # of prctl(2)
CUDA_NOT_INITIALIZED = 3  # of the CUDA driver


class StandbyServer:
    """Answers ranks on two sockets: `control` tells it what to import and when, `start` asks for a fork."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.environment: dict[str, str] | None = None  # of the next attempt
        self.stamp = ""
        self.own_environment: dict[str, str] = {}  # that it has imported in
        self.added: dict[str, str] = {}  # variables that imports set
        self.ranks: dict[int, socket.socket | None] = {}
        self.leaving = False
        self.selector = selectors.DefaultSelector()

    def serve(self) -> None:
        """Answer until the supervisor is gone or asks to leave, and the last rank has ended."""
        make_private_folder(Path(self.address))
        self._notice_signals()
        self._listen("control")
        stamp = os.environ.pop(WARM, None)
        if stamp is not None:
            self._warm_up(stamp)
        while not self.leaving or self.ranks:
            for key, _ in self.selector.select():
                key.data(key.fileobj)
        for purpose in ("control", "start"):
            socket_path(self.address, purpose).unlink(missing_ok=True)
        with suppress(OSError):
            Path(self.address).rmdir()

    def _notice_signals(self) -> None:
        """Ends of ranks, and the request to leave, wake the selector; so does the end of the supervisor."""
        reading, writing = socket.socketpair()
        for end in (reading, writing):
            end.setblocking(False)
        signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._leave)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the supervisor, which will say
        self.wakeup = (reading, writing)
        self.selector.register(reading, selectors.EVENT_READ, self._reap)
        if not sys.stdin.isatty() and stdin_is_pipe():
            self.selector.register(0, selectors.EVENT_READ, self._supervisor_is_gone)

    def _leave(self, *_: object) -> None:
        self.leaving = True

    def _supervisor_is_gone(self, _: object) -> None:
        self.selector.unregister(0)
        self.leaving = True

    def _listen(self, purpose: str) -> None:
        path = socket_path(self.address, purpose)
        path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.listen(1024)
        answer = self._control if purpose == "control" else self._start
        self.selector.register(listening, selectors.EVENT_READ, answer)

    # ---- Warming up -------------------------------------------------------------------------------------------------

    def _control(self, listening: socket.socket) -> None:
        """Take note of the environment to come; told the modules that a rank has, become warm with them."""
        connection, _ = listening.accept()
        with connection, suppress(OSError, EOFError):
            connection.settimeout(REPLY_SECONDS)
            message, _ = receive(connection)
            if "environment" in message:
                self.environment = message["environment"]
                self.stamp = message["stamp"]
            elif self.environment is not None and not self.ranks:
                socket_path(self.address, "modules").write_text(json.dumps(message["modules"]))
                self._begin_anew(self.environment, self.stamp)

    def _begin_anew(self, environment: dict[str, str], stamp: str) -> NoReturn:
        """This process again, in another environment: libraries read some variables when they are loaded."""
        socket_path(self.address, "start").unlink(missing_ok=True)
        command = module_command("megajukebox.resilience.standby", self.address)
        os.execve(sys.executable, command, environment | WITHOUT_CUDA | {WARM: stamp})

    def _warm_up(self, stamp: str) -> None:
        """Import what ranks do, and offer to start them."""
        self.stamp = stamp
        self.own_environment = dict(os.environ)
        if stamp != code_stamp():
            return  # changed since; the next attempt will tell
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        for module in ENTRIES.values():
            import_module(module)
        modules = socket_path(self.address, "modules")
        for name in json.loads(modules.read_text()):  # in the order of the rank that had them
            if not name.startswith(JOINING_MODULES):
                with suppress(Exception):  # some names are made by others
                    import_module(name)
        modules.unlink()
        for name, value in os.environ.items():
            if self.own_environment.get(name) != value:
                self.added[name] = value
        if cuda_is_initialised():
            print("standby: imports initialised CUDA; restarts stay cold", file=sys.stderr)
            return
        gc.collect()
        gc.freeze()  # so that collections of a rank do not touch, and so copy, what it shares
        self._listen("start")

    # ---- Starting ranks ---------------------------------------------------------------------------------------------

    def _start(self, listening: socket.socket) -> None:
        connection, _ = listening.accept()
        connection.settimeout(REPLY_SECONDS)
        files: list[int] = []
        try:
            request, files = receive(connection)
            reason = self._unfit(request)
            send(connection, {"refused": reason} if reason else {"ready": True})
            is_asked = not reason and "go" in receive(connection)[0]
        except (OSError, EOFError):
            is_asked = False
        if is_asked:
            self._fork(connection, request, files)
        else:
            connection.close()
        for file in files:
            os.close(file)

    def _unfit(self, request: Mapping[str, Any]) -> str:
        """Why a rank must not be started here; empty if it may."""
        if self.leaving:
            return "the standby is leaving"
        if request["stamp"] != self.stamp:
            return "the code has changed since the standby imported it"
        differing = differing_variables(self.own_environment, request["environment"])
        if differing:
            return f"the standby was started with another {', '.join(differing)}"
        return ""

    def _fork(
        self, connection: socket.socket, request: Mapping[str, Any], files: list[int]
    ) -> None:
        server = os.getpid()
        with warnings.catch_warnings():
            # Python warns of threads: some BLAS has some, idle, which it starts again in a fork.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            self._close(connection)
            become_rank(server, request, files, self.added)
        self.ranks[pid] = connection
        connection.setblocking(False)
        self.selector.register(connection, selectors.EVENT_READ, self._from_shadow)

    def _close(self, *connections: socket.socket) -> None:
        """In a fork: what is the server's own."""
        signal.set_wakeup_fd(-1)
        for key in list(self.selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self.selector.close()
        for one in (*self.wakeup, *connections):
            one.close()

    def _from_shadow(self, connection: socket.socket) -> None:
        """A signal for its rank; if the shadow is gone, its rank goes too."""
        (pid,) = [pid for pid, shadow in self.ranks.items() if shadow is connection]
        try:
            connection.settimeout(REPLY_SECONDS)
            number = receive(connection)[0]["signal"]
        except (OSError, EOFError):
            number = signal.SIGKILL
            self.selector.unregister(connection)
            connection.close()
            self.ranks[pid] = None
        os.kill(pid, number)

    def _reap(self, reading: socket.socket) -> None:
        """Tell shadows how their ranks ended."""
        with suppress(BlockingIOError):
            while reading.recv(1024):
                pass
        while self.ranks:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            connection = self.ranks.pop(pid, None)
            if connection is not None:
                self.selector.unregister(connection)
                with connection, suppress(OSError):
                    send(connection, {"status": status})


def differing_variables(own: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Names of variables that a process reads while it starts and that differ, but for what the standby adds."""
    differing = []
    for name in sorted(own.keys() | wanted.keys()):
        varies = name in VARYING or name.startswith(VARYING_PREFIXES) or name in WITHOUT_CUDA
        if not varies and own.get(name) != wanted.get(name):
            differing.append(name)
    return differing


def become_rank(
    server: int, request: Mapping[str, Any], files: list[int], added: Mapping[str, str]
) -> NoReturn:
    """In a fork of the standby: become the process that the launcher wanted, and never return."""
    code: Any = 1
    try:
        die_with(server)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for standard, file in enumerate(files):
            os.dup2(file, standard)
            os.close(file)
        with suppress(OSError):  # the standby may be confined to fewer cores
            os.sched_setaffinity(0, request["affinity"])
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update({**added, **request["environment"], STARTED: "warm"})
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        if "numpy" in sys.modules:  # as in a new process: not that of the other forks
            sys.modules["numpy"].random.seed()
        run_entry(request["entry"], request["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code or 0)


def die_with(parent: int) -> None:
    """Let the kernel kill this process when the standby dies: nobody could tell its shadow how it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        os._exit(1)


def cuda_is_initialised() -> bool:
    """Whether something in this process has initialised CUDA: a fork could not use it any more."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != CUDA_NOT_INITIALIZED


def stdin_is_pipe() -> bool:
    """Whether the supervisor holds the other end of stdin: at its end the standby leaves too."""
    return stat.S_ISFIFO(os.fstat(0).st_mode)


if __name__ == "__main__":
    StandbyServer(sys.argv[1]).serve()
