"""The files of a checkpoint: summed while written, no exception on a full disk, nothing run when read."""

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch

from megajukebox.training.engines.engine import ALLOWED
from megajukebox.training.engines.storage import Storage

STATE = {"weights": torch.arange(1000.0), "step": 7, "names": ["a", "b"]}


def test_what_was_written_is_read_and_its_sum_is_known(tmp_path: Path) -> None:
    storage, path = Storage([]), str(tmp_path / "state.pt")
    storage.save(STATE, path)
    back = storage.load(path)
    assert torch.equal(back["weights"], STATE["weights"]) and back["step"] == 7 and storage.failure is None
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
        Storage(ALLOWED).load(str(path))
    assert not (tmp_path / "evil").exists()


def test_only_four_names_are_allowed_in_a_checkpoint() -> None:
    names = {thing.__name__ for thing in ALLOWED}
    assert names == {"ZeroStageEnum", "LossScaler", "DynamicLossScaler", "fragment_address"}


def test_a_disk_that_refuses_is_noted_and_the_rest_of_the_save_left_out(tmp_path: Path) -> None:
    storage = Storage([])
    storage.save({"big": torch.zeros(100_000)}, "/dev/full")
    assert storage.failure and "No space left" in storage.failure and "MB free" in storage.failure
    storage.save(STATE, str(tmp_path / "next.pt"))
    assert not (tmp_path / "next.pt").exists() and storage.stored == {}
    storage.begin()
    storage.save(STATE, str(tmp_path / "next.pt"))
    assert storage.failure is None and (tmp_path / "next.pt").exists()


def test_a_folder_that_is_gone_is_noted_too(tmp_path: Path) -> None:
    storage = Storage([])
    storage.save(STATE, str(tmp_path / "gone/state.pt"))
    assert storage.failure and "No such file" in storage.failure
