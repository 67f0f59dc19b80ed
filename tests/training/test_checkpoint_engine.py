"""The files of a checkpoint: summed while written, no exception on a full disk, nothing run when read."""

import hashlib
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import environment

from megajukebox.training.engines.checkpoint_engine import CheckpointStorage
from megajukebox.training.engines.universal_checkpoint import (
    ALLOWED,
    _wait_for,
    follow,
    vet,
    weights_of,
)

STATE = {"weights": torch.arange(1000.0), "step": 7, "names": ["a", "b"]}


def test_what_was_written_is_read_and_its_sum_is_known(tmp_path: Path) -> None:
    storage, path = CheckpointStorage([]), str(tmp_path / "state.pt")
    storage.save(STATE, path)
    back = storage.load(path)
    assert (
        torch.equal(back["weights"], STATE["weights"])
        and back["step"] == 7
        and storage.failure is None
    )
    data = Path(path).read_bytes()
    assert storage.stored[path] == (len(data), hashlib.sha256(data).hexdigest())


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt"
    torch.save({"x": Evil()}, path)
    with pytest.raises(pickle.UnpicklingError, match="system"):
        CheckpointStorage(ALLOWED).load(str(path))
    assert not (tmp_path / "evil").exists()


FILES = (
    "mp_rank_00_model_states.pt",
    "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "layer_00-model_states.pt",
)


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_that_would_run_code_is_no_start_for_another_run(
    tmp_path: Path, monkeypatch, name: str
) -> None:
    """DeepSpeed's own readers, of weights alone and for other numbers of processes, would run it."""
    monkeypatch.chdir(tmp_path)
    saved = tmp_path / "step-00000004/state"
    saved.mkdir(parents=True)
    torch.save({"module": {"w": torch.zeros(3)}, "x": Evil()}, saved / name)
    with pytest.raises(ValueError, match=f"{name} holds more than tensors and plain values"):
        weights_of(saved)
    with pytest.raises(ValueError, match=f"{name} holds more than tensors and plain values"):
        vet(saved)
    assert not (tmp_path / "evil").exists()


def test_only_four_names_are_allowed_in_a_checkpoint() -> None:
    names = {thing.__name__ for thing in ALLOWED}
    assert names == {"ZeroStageEnum", "LossScaler", "DynamicLossScaler", "fragment_address"}


def test_a_disk_that_refuses_is_noted_and_the_rest_of_the_save_left_out(tmp_path: Path) -> None:
    storage = CheckpointStorage([])
    storage.save({"big": torch.zeros(100_000)}, "/dev/full")
    assert storage.failure and "No space left" in storage.failure and "MB free" in storage.failure
    storage.save(STATE, str(tmp_path / "next.pt"))
    assert not (tmp_path / "next.pt").exists() and storage.stored == {}
    storage.begin()
    storage.save(STATE, str(tmp_path / "next.pt"))
    assert storage.failure is None and (tmp_path / "next.pt").exists()


def test_a_folder_that_is_gone_is_noted_too(tmp_path: Path) -> None:
    storage = CheckpointStorage([])
    storage.save(STATE, str(tmp_path / "gone/state.pt"))
    assert storage.failure and "No such file" in storage.failure


# A child writes until it is allowed to end, as DeepSpeed's conversion does in its pool of processes.
WRITES = """
import pathlib, subprocess, sys, time
if sys.argv[2:]:
    raise SystemExit(subprocess.call([sys.executable, *sys.argv[2:]]))
folder = pathlib.Path(sys.argv[1])
while not (folder / "enough").exists():
    (folder / "part").write_text("x" * 100)
    time.sleep(0.01)
"""


def test_a_conversion_makes_progress_as_long_as_its_processes_write(tmp_path: Path) -> None:
    calls: list[int] = []

    def progressed() -> None:
        calls.append(1)
        if len(calls) == 5:
            (tmp_path / "enough").touch()

    script = tmp_path / "writes.py"
    script.write_text(WRITES)
    follow(
        [sys.executable, str(script), "", str(script), str(tmp_path)], progressed, poll_seconds=0.1
    )
    assert len(calls) >= 5


def test_a_conversion_that_is_stuck_makes_none_and_one_that_fails_says_so() -> None:
    calls: list[int] = []
    follow(["sleep", "3"], lambda: calls.append(1), poll_seconds=0.05)
    assert len(calls) < 20, "of some sixty looks, those while it started"
    with pytest.raises(subprocess.CalledProcessError, match="exit status 1"):
        follow(["false"], lambda: None)


def test_who_waits_for_a_conversion_sees_its_progress(tmp_path: Path) -> None:
    whole, sign, calls = tmp_path / "whole", tmp_path / "goes_on", list[int]()
    sign.touch()

    def progressed() -> None:
        calls.append(1)
        if len(calls) == 3:
            whole.touch()
        else:
            threading.Timer(0.1, sign.touch).start()

    _wait_for(whole, sign, progressed)
    assert len(calls) == 3


CONVERTS = """
import pathlib, shutil, sys, time
import torch.distributed as dist
from megajukebox.training.engines import universal_checkpoint
from megajukebox.resilience.exit_codes import leave_now

saved, rank = pathlib.Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{saved.parent.parent}/meeting", rank=rank, world_size=2)

def slowly(saved, made, tell):
    for _ in range(8):
        tell()
        time.sleep(0.25)

universal_checkpoint._convert, universal_checkpoint._convert_average = slowly, lambda *_: None
seen, remove = [], shutil.rmtree
shutil.rmtree = lambda *given, **named: (time.sleep(1), remove(*given, **named))  # a large folder takes its time
with universal_checkpoint.converted(saved, lambda: seen.append(1)):
    print(len(seen))
dist.barrier()
leave_now(0)
"""


def test_what_a_killed_conversion_left_is_not_taken_for_the_new_one(tmp_path: Path) -> None:
    """Else the other ranks wait where they tell no progress, and are ended as hung."""
    saved, old = tmp_path / "step-00000004/state", tmp_path / "step-00000004.universal"
    saved.mkdir(parents=True)
    old.mkdir()
    (old / "complete").touch()
    command = [sys.executable, "-c", CONVERTS, str(saved)]
    pipes = {"stdout": subprocess.PIPE, "text": True, "env": environment()}
    ranks = [subprocess.Popen([*command, str(rank)], **pipes) for rank in (0, 1)]  # type: ignore[call-overload]
    counts = [int(rank.communicate(timeout=200)[0].splitlines()[-1]) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0] and counts[0] == 8 and counts[1] >= 1
    assert not old.exists()
