"""The warm standby: ranks start in it as they would alone, die with their launcher's process, and fall back to a cold
start where it is not what a new process would be.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import environment
from fixtures.interrupted_runs import (
    by_deepspeed,
    environment_of,
    events,
    fingerprint,
    losses,
    run,
    wait_until,
)
from fixtures.paths import ROOT

from megajukebox.resilience import handover
from megajukebox.resilience.standby import differing_variables
from megajukebox.resilience.standby_launcher import with_standby

pytestmark = pytest.mark.cold_start  # about what a new process is

# A standby whose entry is a program of the test's own: without torch it is warm in no time.
SERVER = """
import os, sys
from megajukebox.resilience import handover, standby
handover.ENTRIES = standby.ENTRIES = {"train": "entry"}
handover.code_stamp = standby.code_stamp = lambda: open(sys.argv[2]).read()
def begin_anew(self, environment, stamp):
    os.environ.clear()
    os.environ.update(environment)
    self._warm_up(stamp)
standby.StandbyServer._begin_anew = begin_anew
standby.StandbyServer(sys.argv[1]).serve()
"""
RANK = """
import sys
from megajukebox.resilience import handover
handover.ENTRIES = {"train": "entry"}
stamp = sys.argv.pop(1)
handover.code_stamp = lambda: open(stamp).read()
handover.main()
"""
ENTRY = """
import os, sys, time
import numpy
COUNT = []
def main(word: str, status: int = 0, sleep: float = 0.0) -> None:
    COUNT.append(1)
    print(word, os.environ.get("MEGAJUKEBOX_START"), os.environ["RANK"], len(COUNT), os.getcwd(), flush=True)
    print("to stderr", file=sys.stderr)
    time.sleep(sleep)
    sys.exit(status)
"""


class Node:
    """A node with a standby, on which ranks are started as a launcher would."""

    def __init__(self, folder: Path, entry: str = ENTRY, gpu: bool = False) -> None:
        self.folder = folder
        self.address = str(folder / "standby")
        self.stamp = folder / "stamp"
        self.stamp.write_text("as it was")
        (folder / "entry.py").write_text(entry)
        self.environment = environment(gpu) | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
        command = [sys.executable, "-c", SERVER, self.address, str(self.stamp)]
        self.server = subprocess.Popen(command, env=self.environment, stdin=subprocess.PIPE)
        wait_until(self.socket("control").exists, 60)

    def socket(self, purpose: str) -> Path:
        return handover.socket_path(self.address, purpose)

    def start(self, *arguments: str, rank: int = 0, **variables: str) -> subprocess.Popen:
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + rank)}
        return subprocess.Popen(
            [sys.executable, "-c", RANK, str(self.stamp), "train", *arguments],
            env=self.environment | place | {handover.ADDRESS: self.address} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
        )

    def tell(self, message: dict[str, Any]) -> None:
        with handover.connected(self.socket("control")) as connection:
            handover.send(connection, message)

    def warm_up(self) -> None:
        """Let it import, as a rank that trains does."""
        environment = self.environment | {handover.ADDRESS: self.address}
        self.tell({"environment": environment, "stamp": self.stamp.read_text()})
        self.tell({"modules": ["json", "no.such.module"]})
        wait_until(self.socket("start").exists, 60)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.server.kill()
    made.server.wait()


@pytest.fixture
def warm(node: Node) -> Node:
    node.warm_up()
    return node


def test_the_first_start_is_cold_and_tells_what_the_next_one_needs(node: Node, monkeypatch) -> None:
    first = node.start("first")
    out, err = first.communicate(timeout=60)
    assert first.returncode == 0 and out.startswith("first no standby is warm yet")
    assert "cold start: no standby is warm yet" in err
    for name, value in {handover.ADDRESS: node.address, "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "modules", {"json": None})
    handover.prepare_next()  # as the training loop does
    monkeypatch.undo()
    wait_until(node.socket("start").exists, 60)
    second = node.start("second")
    out, err = second.communicate(timeout=60)
    assert out.startswith("second warm") and "cold" not in err


def test_a_rank_in_the_standby_has_its_own_arguments_environment_folder_and_output(
    warm: Node,
) -> None:
    ranks = [warm.start(f"word-{rank}", rank=rank) for rank in range(3)]
    for rank, process in enumerate(ranks):
        out, err = process.communicate(timeout=60)
        assert out.split() == [f"word-{rank}", "warm", str(rank), "1", str(warm.folder)]
        assert "to stderr" in err and process.returncode == 0


def test_it_ends_as_its_rank_ends(warm: Node) -> None:
    process = warm.start("x", "--status", "85")
    process.communicate(timeout=60)
    assert process.returncode == 85
    killed = warm.start("x", "--sleep", "100")
    assert killed.stdout.readline().startswith("x warm")
    os.kill(child_of(warm.server.pid), signal.SIGKILL)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL


def child_of(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_what_strikes_the_launchers_process_strikes_its_rank(warm: Node, number: int) -> None:
    process = warm.start("x", "--sleep", "100")
    assert process.stdout.readline().startswith("x warm")
    rank = child_of(warm.server.pid)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == -number
    wait_until(lambda: not is_alive(rank), 30)
    assert warm.server.poll() is None


def test_ranks_die_with_the_standby_and_the_launcher_is_told_to_try_again(warm: Node) -> None:
    process = warm.start("x", "--sleep", "100")
    assert process.stdout.readline().startswith("x warm")
    rank = child_of(warm.server.pid)
    warm.server.kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == handover.EXIT_RETRY and "the standby died" in err
    wait_until(lambda: not is_alive(rank), 30)


def test_code_that_has_changed_is_not_run_from_the_standby(warm: Node, monkeypatch) -> None:
    warm.stamp.write_text("a fault was mended")
    process = warm.start("x")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "cold start: the code has changed" in err
    assert out.startswith("x the code has changed")


def test_another_environment_is_not_run_from_the_standby(warm: Node) -> None:
    process = warm.start("x", OMP_NUM_THREADS="7")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "cold start: the standby was started with another OMP_NUM_THREADS" in err


def test_without_a_standby_a_rank_starts_cold(node: Node) -> None:
    node.server.kill()
    node.server.wait()
    process = node.start("x")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "cold start" in err and out.startswith("x ")


def test_a_folder_that_others_may_write_to_is_not_trusted(warm: Node) -> None:
    os.chmod(warm.address, 0o777)
    process = warm.start("x")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "cold start: the standby does not answer" in err


def test_it_leaves_with_its_supervisor_when_its_last_rank_has_ended(warm: Node) -> None:
    process = warm.start("x", "--sleep", "1")
    assert process.stdout.readline().startswith("x warm")
    warm.server.stdin.close()
    process.communicate(timeout=60)
    assert process.returncode == 0, "the rank was not disturbed"
    assert warm.server.wait(60) == 0 and not Path(warm.address).exists()


# ---- Pure ---------------------------------------------------------------------------------------


def test_only_what_differs_from_rank_to_rank_may_differ() -> None:
    own = {"OMP_NUM_THREADS": "4", "PATH": "/bin", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    wanted = {"OMP_NUM_THREADS": "4", "PATH": "/bin", "RANK": "3", "MASTER_PORT": "7"}
    wanted |= {"SLURM_PROCID": "3", "OMPI_COMM_WORLD_RANK": "3", "CUDA_VISIBLE_DEVICES": "1"}
    assert differing_variables(own, wanted) == []
    changed = wanted | {"LD_PRELOAD": "x.so", "PATH": "/usr/bin"}
    assert differing_variables(own, changed) == ["LD_PRELOAD", "PATH"]


SCRIPT = str(Path(handover.__file__))
TRAIN = str(ROOT / "megajukebox/train.py")


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        (f"srun -K1 python {TRAIN} vqvae --out x", f"srun -K1 python {SCRIPT} train vqvae --out x"),
        (f"deepspeed --num_gpus 2 {TRAIN} vqvae", f"deepspeed --num_gpus 2 {SCRIPT} train vqvae"),
        ("srun megajukebox train vqvae", f"srun {sys.executable} {SCRIPT} train vqvae"),
        ("python -m megajukebox.cli doctor", f"python {SCRIPT} doctor"),
        (
            "mpirun -n 2 megajukebox distill top",
            f"mpirun -n 2 {sys.executable} {SCRIPT} distill top",
        ),
        ("python somebody/elses/train.py vqvae", None),
        ("megajukebox sample runs", None),
        ("false", None),
    ],
)
def test_the_supervisor_starts_our_entries_by_the_handover(
    command: str, wanted: str | None
) -> None:
    made = with_standby(command.split())
    assert made == (wanted.split() if wanted else None)


def test_a_launchers_words_before_the_entry_go_behind_it() -> None:
    words = ["--local_rank=1", "train", "vqvae", "--out", "x"]
    assert handover.split_arguments(words) == ("train", ["vqvae", "--out", "x", "--local_rank=1"])


# ---- For real -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.xdist_group("faults")
@pytest.mark.parametrize("standby", [True, False], ids=["warm", "cold"])
def test_a_killed_run_ends_with_the_same_bits_with_and_without_a_standby(
    data: Path, straight: Path, tmp_path: Path, standby: bool
) -> None:
    out = tmp_path / "run"
    option = "--standby" if standby else "--no-standby"
    supervised = ["megajukebox", "supervise", option, str(out), "--"]
    slow = environment_of("slow=1.5 kill=1@27", tmp_path)  # time enough to import in
    assert run([*supervised, *by_deepspeed(data, out)], slow) == 0
    (resumed,) = events(out, "resume")
    assert resumed.get("standby") == ("warm" if standby else None)
    assert losses(out) == losses(straight) and fingerprint(out) == fingerprint(straight)


COMPUTES = """
import torch, deepspeed
def main(word: str) -> None:
    print(word, float(torch.ones(8, device="cuda").sum()))
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_rank_in_the_standby_computes_on_the_gpu(tmp_path: Path) -> None:
    """CUDA must not be initialised in the standby, by whatever it imports: a fork of it could not use it."""
    node = Node(tmp_path, COMPUTES, gpu=True)
    try:
        node.warm_up()
        out, err = node.start("computed").communicate(timeout=200)
        assert out.split()[-2:] == ["computed", "8.0"] and "cold start" not in err
    finally:
        node.server.kill()
        node.server.wait()
