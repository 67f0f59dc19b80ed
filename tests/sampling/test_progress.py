"""The file that tells how far sampling has come, and the steps that a sample was made with."""

import json
import subprocess
import sys
from pathlib import Path

from conftest import environment
from fixtures.tiny_jukebox import write_runs

from megajukebox.sampling.progress import ProgressFile


def test_progress_is_kept_at_the_start_and_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    report = ProgressFile(path, {"top": 4, "bottom": 8})
    assert json.loads(path.read_text()) == {
        "done": {"top": 0, "bottom": 0},
        "total": {"top": 4, "bottom": 8},
    }
    report.advance("top", 4)
    report.advance("bottom", 8)
    assert json.loads(path.read_text())["done"] == {"top": 4, "bottom": 8}
    ProgressFile(None, {"top": 4}).advance("top", 4)
    assert list(tmp_path.iterdir()) == [path]


def test_the_entry_keeps_its_progress_and_says_which_steps_made_the_song(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    command = [
        "-m",
        "megajukebox.sample",
        str(runs),
        "--seconds",
        "0.5",
        "--out",
        str(tmp_path / "out"),
    ]
    command += ["--progress", str(tmp_path / "progress.json")]
    done = subprocess.run(
        [sys.executable, *command], env=environment(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert progress["done"] == progress["total"] and set(progress["done"]) == {
        "top",
        "middle",
        "bottom",
    }
    song = json.loads((tmp_path / "out" / "song.json").read_text())
    assert song["steps"] == {"vqvae": 1, "top": 5, "middle": 5, "bottom": 5}
