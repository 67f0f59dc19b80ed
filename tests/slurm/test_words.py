"""SETTINGS is taken apart at its spaces and nothing more: a `*` in it names no files."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "slurm" / "cluster.sh"


def test_a_star_in_settings_names_no_files(tmp_path: Path) -> None:
    (tmp_path / "training.steps=1").touch()
    (options,) = [line for line in SCRIPT.read_text().splitlines() if line.startswith("set -")]
    script = f"{options}\nprintf '%s|' $SETTINGS"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "SETTINGS": "training.steps=* [a-z]* x=1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "training.steps=*|[a-z]*|x=1|", done.stderr
