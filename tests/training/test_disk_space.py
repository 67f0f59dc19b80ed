"""A run that could not save is refused before it trains."""

import shutil
from collections import namedtuple
from functools import partial
from pathlib import Path

import pytest
from fixtures.interrupted_runs import alone, by_deepspeed, environment_of, printed, run
from pytest import MonkeyPatch
from torch import nn

from megajukebox.training.checkpointing.disk_space import missing_disk_space

Usage = namedtuple("Usage", "total used free")
BUILD = partial(nn.Linear, 999, 1000)  # a million weights


def test_a_run_whose_first_checkpoint_would_not_fit_is_told_what_is_needed(
    tmp_path: Path, monkeypatch: MonkeyPatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, 17_000_000))
    assert missing_disk_space(tmp_path, BUILD, averaged=False) == "", "16 MB are needed"
    told = missing_disk_space(tmp_path, BUILD, averaged=True)
    assert str(tmp_path) in told and "0.017 GB free" in told and "0.02 GB" in told
    assert "1,000,000 weights" in told


def test_a_run_that_has_saved_is_not_asked(tmp_path: Path, monkeypatch: MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, 0))
    assert missing_disk_space(tmp_path, BUILD, averaged=False)
    (tmp_path / "checkpoints/step-00000005").mkdir(parents=True)
    assert missing_disk_space(tmp_path, BUILD, averaged=False) == ""


@pytest.mark.parametrize("launched, codes", [(alone, {93}), (by_deepspeed, {1, 93})])
def test_the_entry_ends_with_93_and_one_line_where_there_is_missing_disk_space(
    launched, codes, data: Path, tmp_path: Path
):
    """A disk that reports nothing free. The launcher of several ranks has an exit status of its own."""
    (tmp_path / "sitecustomize.py").write_text(
        "import shutil, collections\n"
        "shutil.disk_usage = lambda _: collections.namedtuple('Usage', 'total used free')(1, 1, 0)\n"
    )
    out, env = tmp_path / "run", environment_of()
    assert (
        run(launched(data, out), env | {"PYTHONPATH": f"{tmp_path}:{env['PYTHONPATH']}"}) in codes
    )
    assert "take at least" in printed(out) and "Traceback" not in printed(out)
    assert not list(out.glob("checkpoints/step-*")) and not (out / "metrics.jsonl").exists()
