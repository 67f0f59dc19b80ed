"""The process that keeps a jukebox between songs: the songs of a fresh one, and what it does with mistakes."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import environment
from fixtures.tiny_jukebox import write_runs

from megajukebox.sampling import worker
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.songs.requests import SongRequest


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("runs"))


def order(folder: Path, **request: Any) -> dict[str, Any]:
    paths = {
        "out": str(folder),
        "progress": str(folder / "progress.json"),
        "stop": str(folder / "STOP"),
    }
    return {"request": {"seconds": 0.4, **request}, **paths}


def test_a_kept_jukebox_makes_the_songs_of_a_fresh_one_however_often(
    runs: Path, tmp_path: Path
) -> None:
    standing = worker.SamplerServer(runs)
    for name, seed in (("a", 1), ("b", 2), ("again", 1)):
        answer = standing.answer(order(tmp_path, id=name, seed=seed, lyrics="la la la"))
        assert (answer["state"], answer["reason"]) == ("done", "") and answer["memory"] > 0
    (fresh,) = Jukebox(runs, "cpu").sample(
        [SongRequest(id="a", seconds=0.4, seed=1, lyrics="la la la")]
    )
    for level, codes in fresh.codes.items():
        made = [np.load(tmp_path / f"{name}.codes.npz")[level] for name in ("a", "b", "again")]
        assert (
            np.array_equal(made[0], codes)
            and np.array_equal(made[2], codes)
            and not np.array_equal(made[1], codes)
        )
    told = json.loads((tmp_path / "progress.json").read_text())
    assert told["done"] == told["total"]


def test_it_loads_once_and_again_only_when_a_file_of_the_runs_changed(
    runs: Path, tmp_path: Path
) -> None:
    standing = worker.SamplerServer(runs)
    first = standing.jukebox()
    assert standing.jukebox() is first and all(
        run.kept_prior is not None for run in first.levels.values()
    )
    os.utime(runs / "top_prior" / "model.json", ns=(1, 1))
    assert standing.jukebox() is not first


def test_priors_that_do_not_fit_together_are_loaded_level_by_level(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "KEPT_MEMORY_SHARE", 0.0)
    standing = worker.SamplerServer(runs)
    assert standing.answer(order(tmp_path, id="large"))["state"] == "done"
    assert all(run.kept_prior is None for run in standing.jukebox().levels.values())


def test_a_song_that_is_stopped_leaves_nothing(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    assert worker.SamplerServer(runs).answer(order(tmp_path, id="stopped"))["state"] == "stopped"
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith("stopped")]


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"id": "a", "seconds": -1}, "seconds"),
        ({"id": "a", "prompt": "none.wav", "seconds": 2}, "missing"),
    ],
)
def test_what_cannot_be_made_is_said_and_the_next_song_is_made(
    runs: Path, tmp_path: Path, request_: dict[str, Any], why: str
) -> None:
    standing = worker.SamplerServer(runs)
    answer = standing.answer(order(tmp_path, **request_))
    assert answer["state"] == "failed" and why in answer["reason"]
    assert standing.answer(order(tmp_path, id="next"))["state"] == "done"


def test_its_output_is_answers_alone_and_it_ends_with_its_input(runs: Path, tmp_path: Path) -> None:
    asked = "".join(json.dumps(order(tmp_path, id=name)) + "\n" for name in ("one", "two"))
    command = [sys.executable, "-m", "megajukebox.sampling.worker", str(runs)]
    done = subprocess.run(
        command, input=asked, capture_output=True, text=True, env=environment(), timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["state"] for line in done.stdout.splitlines()] == ["done", "done"]


def test_a_line_in_is_a_line_out(runs: Path, tmp_path: Path) -> None:
    answers = io.StringIO()
    worker.serve(
        worker.SamplerServer(runs), [json.dumps(order(tmp_path, id="one")) + "\n"], answers
    )
    assert answers.getvalue().count("\n") == 1 and json.loads(answers.getvalue())["state"] == "done"
