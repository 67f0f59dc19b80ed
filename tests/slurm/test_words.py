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


def in_bash(command: str, shards: str) -> subprocess.CompletedProcess[str]:
    """`command` after the functions of cluster.sh that take SHARDS apart."""
    text = SCRIPT.read_text()
    functions = []
    for name in ("need", "need_shards", "data_of", "one_set"):
        start = text.index(f"\n{name}() {{")
        functions.append(text[start : text.index("\n}\n", start) + 2])
    options = [line for line in text.splitlines() if line.startswith(("set -", "shopt -"))]
    script = "\n".join([*options, "DRY_RUN= MISSING= SLURM_JOB_NAME=job", *functions, command])
    environment = {**os.environ, "SHARDS": shards}
    return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)


def test_shards_may_name_several_sets_with_weights() -> None:
    done = in_bash("data_of codes", "scratch/a:3 b:0.25 c s3://bucket/d:2")
    assert done.stdout.split("\n")[:-1] == [
        *("--data", "scratch/a/codes:3", "--data", "b/codes:0.25"),
        *("--data", "c/codes", "--data", "s3://bucket/d/codes:2"),
    ]
    assert in_bash("data_of songs", "shards").stdout == "--data\nshards/songs\n"


def test_every_set_must_have_finished_and_some_scripts_take_one(tmp_path: Path) -> None:
    (tmp_path / "a/codes").mkdir(parents=True)
    (tmp_path / "a/codes/index.json").touch()
    ready = in_bash("need_shards codes x; echo ready", f"{tmp_path}/a:3 https://host/b:1")
    assert ready.stdout == "ready\n"
    done = in_bash("need_shards codes slurm/codes.sh", f"{tmp_path}/a:3 {tmp_path}/b:1")
    assert done.returncode == 93 and f"{tmp_path}/b/codes/index.json is missing" in done.stderr
    assert in_bash("one_set", "a").returncode == 0
    assert "submit it for each" in in_bash("one_set", "a b").stderr
