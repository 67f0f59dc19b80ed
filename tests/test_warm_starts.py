"""Processes that fixtures/warm_starts.py forks are what new Python processes are, and are gone when theirs are."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from conftest import LIBRARIES, environment
from fixtures import warm_starts
from fixtures.paths import ROOT

# Looks as if it imported torch, so that it is forked, and does not, so that it starts cold in no time.
WARM = '"""\nimport torch\n"""\n'
TELL = """
import json, os, signal, sys, threading, warnings
sys.path[:] = [path for path in sys.path if "finder" not in path]
for set_by_libraries in ("PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR"):
    os.environ.pop(set_by_libraries, None)
told = {
    "name": __name__, "file": globals().get("__file__"), "argv": sys.argv, "orig": sys.orig_argv,
    "path": sys.path, "folder": os.getcwd(), "environment": dict(os.environ),
    "parent": os.getppid(), "umask": os.umask(0o22), "options": sys.warnoptions,
    "leads": os.getsid(0) == os.getpid(), "group": os.getpgrp() == os.getpid(),
    "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "handlers": {n: str(signal.getsignal(n)).split(" at ")[0] for n in signal.valid_signals()},
    "threads": threading.active_count(), "main": sys.modules["__main__"].__dict__ is globals(),
    "buffered": not sys.stdout.line_buffering, "in": sys.stdin.read(),
    "files": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if int(fd) < 10)[:3],
}
print(json.dumps(told))
"""

pytestmark = pytest.mark.skipif(
    "config.getoption('--cold-starts')", reason="asked for with --cold-starts: nothing is forked"
)


def started(
    command: list[str], is_warm: bool, monkeypatch: pytest.MonkeyPatch, **how
) -> subprocess.CompletedProcess[str]:
    """The command's end; it was forked if `is_warm`, else not."""
    before = LIBRARIES.started
    with monkeypatch.context() as patch:
        patch.setattr(LIBRARIES, "is_paused", not is_warm)
        how = {"env": environment(), "capture_output": True, "text": True, "timeout": 100} | how
        done = subprocess.run(command, **how)
    assert LIBRARIES.started == before + is_warm
    return done


def both_ways(
    command: list[str], monkeypatch: pytest.MonkeyPatch, **how
) -> tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]:
    return started(command, True, monkeypatch, **how), started(command, False, monkeypatch, **how)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"input": "a line\n", "cwd": "/"},
        {"start_new_session": True},
        {
            "env": {
                "PYTHONPATH": f"relative::{ROOT}:/nowhere",
                "PYTHONWARNINGS": "ignore,error::Warning",
            }
        },
        {"env": {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}},
    ],
)
@pytest.mark.parametrize("kind", ["-c", "-u -c", "script", "-m"])
def test_a_fork_finds_all_as_a_new_process_does(
    kind: str, how: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "told.py").write_text(TELL)
    monkeypatch.setattr(warm_starts, "SCRIPTS", frozenset(("told.py",)))
    monkeypatch.setattr(warm_starts, "MODULES", frozenset(("told",)))
    told = environment() | how.get("env", {})
    how = {"cwd": tmp_path, "input": ""} | how | {"env": told}
    program = {
        "script": [str(tmp_path / "told.py")],
        "-m": ["-m", "told"],
    }.get(kind, ["-c", WARM + TELL])
    if kind == "-m":
        told["PYTHONPATH"] = f"{tmp_path}:{told.get('PYTHONPATH', '')}"
    options = ["-u"] if kind == "-u -c" else []
    command = [sys.executable, *options, *program, "one", "--two"]
    warm, cold = both_ways(command, monkeypatch, **how)
    assert cold.returncode == 0, cold.stderr
    assert json.loads(warm.stdout) == json.loads(cold.stdout)
    assert (warm.returncode, warm.stderr) == (0, cold.stderr)


@pytest.mark.parametrize(
    "ending",
    [
        "print('out'); raise ValueError('no')",
        "import sys; print('out'); sys.exit('said')",
        "import sys; sys.exit(93)",
        "import sys; sys.exit(-1)",
        "import sys; sys.exit(None)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import os; os.abort()",
        "import os; print('lost'); os._exit(7)",
        "import sys; print('both', file=sys.stderr, end=''); print('kept'); import os; os._exit(7)",
        "raise KeyboardInterrupt",
        "import sys; sys.stdout.write('unflushed'); sys.stdout.buffer.write(b' too')",
        "import atexit; atexit.register(print, 'last'); print('first')",
        "import threading, time\nthreading.Thread(target=lambda: [time.sleep(.1), print('late')]).start()",
        "file = open('left_open', 'w'); file.write('text')",
        "import warnings; warnings.warn('shown')",
    ],
)
def test_a_fork_ends_as_a_new_process_does(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment_ = environment() | {"PYTHONWARNINGS": "default::UserWarning"}
    command = [sys.executable, "-c", WARM + ending]
    left, ends = [], []
    for end in both_ways(command, monkeypatch, cwd=tmp_path, env=environment_):
        # A new process that is interrupted says so by its own frames alone; a fork adds those that it was made in.
        error = re.sub(r'  File "[^"]*warm_starts.py".*\n( .*\n)+?(?=  File)', "", end.stderr)
        ends.append((end.returncode, end.stdout, error))
        left.append([path.read_text() for path in tmp_path.iterdir()])
    assert ends[0] == ends[1]
    assert left[0] == left[1]


def test_a_signal_sent_at_once_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LIBRARIES, "is_paused", False)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL, signal.SIGHUP):
        command = [sys.executable, "-c", WARM + "import time; time.sleep(60)"]
        process = subprocess.Popen(command, env=environment())
        process.send_signal(number)
        assert process.wait(30) == -number


def test_a_sitecustomize_of_the_search_path_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.custom = 'made'\n")
    told = environment() | {"PYTHONPATH": str(tmp_path)}
    for done in both_ways(
        [sys.executable, "-c", WARM + "import sys; print(sys.custom)"], monkeypatch, env=told
    ):
        assert done.stdout == "made\n"


def refused(tmp_path: Path) -> list[dict]:
    (tmp_path / "torch.py").touch()
    return [
        {"cwd": tmp_path},  # it holds another torch
        {"env": environment() | {"PYTHONPATH": str(tmp_path)}},
        {"env": environment() | {"OMP_NUM_THREADS": "2"}},
        {"env": environment() | {"PYTHONHASHSEED": "1"}},
        {"preexec_fn": lambda: None},
        {"close_fds": False},
        {"umask": 0o77},
    ]


def test_what_a_fork_cannot_be_starts_cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", WARM + "print(1)"]
    assert started(command, True, monkeypatch).stdout == "1\n"
    before = LIBRARIES.started
    for how in refused(tmp_path):
        done = subprocess.run(command, **{"env": environment(), "capture_output": True} | how)
        assert done.returncode == 0
    assert LIBRARIES.started == before


@pytest.mark.cold_start
def test_a_test_that_is_marked_starts_all_cold() -> None:
    before = LIBRARIES.started
    subprocess.run([sys.executable, "-c", WARM], env=environment(), check=True)
    assert LIBRARIES.started == before


def test_two_forks_draw_other_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = "import numpy, random, torch\nprint(numpy.random.rand(), random.random())"
    command = [sys.executable, "-c", draws + "\nimport torch"]
    first, second = (started(command, True, monkeypatch).stdout.split() for _ in range(2))
    assert first[0] != second[0] and first[1] != second[1]


# A launcher: it starts a rank, says both pids, and waits.
LAUNCHER = f"""{WARM}
import subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", {WARM!r} + "import os, sys, time; "
    "print(os.getppid(), 'torch' in sys.modules, flush=True); time.sleep(60)"],
    stdout=subprocess.PIPE, text=True)
print(rank.pid, rank.stdout.readline(), flush=True)
print(rank.wait(), flush=True)
"""


def test_a_launcher_forks_its_ranks_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LIBRARIES, "is_paused", False)
    monkeypatch.setattr(warm_starts, "STARTS_OTHERS", re.compile("-c"))
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout
    rank, parent, is_warm = launcher.stdout.readline().split()
    assert (int(parent), is_warm) == (launcher.pid, "True")
    own = psutil.Process(launcher.pid).children()
    assert int(rank) in [child.pid for child in own] and len(own) == 2  # its library server
    launcher.stdout.readline()
    os.kill(int(rank), signal.SIGKILL)
    assert launcher.stdout.readline() == "-9\n"
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 30
    while any(child.is_running() and child.status() != "zombie" for child in own):
        assert time.monotonic() < deadline, "the launcher's library server outlives it"
        time.sleep(0.01)


def test_every_module_and_verb_of_the_list_is_there() -> None:
    for name in warm_starts.MODULES:
        assert find_spec(f"megajukebox.{name}"), name


def test_the_server_that_forks_has_no_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started([sys.executable, "-c", WARM], True, monkeypatch).returncode == 0
    assert LIBRARIES.process and psutil.Process(LIBRARIES.process.pid).num_threads() == 1
