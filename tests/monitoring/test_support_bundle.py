"""The bundle for somebody far away: everything that tells, and no secret."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

from fixtures.fake_runs import PretendRun

CANARY = "hf_" + "abcdefghijklmnopqrstuvwx"


def bundle(run: Path, out: Path, **variables: str) -> dict[str, str]:
    command = [
        sys.executable,
        "-m",
        "megajukebox.commands.support_bundle",
        str(run),
        "--out",
        str(out),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env={**os.environ, **variables}
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(out) as tar:
        return {
            m.name.split("/", 1)[1]: tar.extractfile(m).read().decode() for m in tar.getmembers()
        }  # type: ignore[union-attr]


def test_it_holds_what_tells_about_the_run(tmp_path: Path) -> None:
    run = PretendRun(tmp_path / "run").start().train(50).beat()
    told = bundle(run.folder, tmp_path / "b.tar.gz", SLURM_JOB_ID="77")
    assert {
        "state.json",
        "doctor.json",
        "machine.json",
        "events.jsonl",
        "metrics.jsonl",
        "run.yaml",
    } <= set(told)
    assert "heartbeats/rank-00001.json" in told and "checkpoints" not in " ".join(told)
    assert json.loads(told["state.json"])[0]["step"] == 50 and '"77"' in told["environment.json"]


def test_no_secret_leaves_with_it(tmp_path: Path) -> None:
    run = PretendRun(tmp_path / "run").start()
    for name in ("run.yaml", "events.jsonl", "train.log"):
        with (run.folder / name).open("a") as file:
            file.write(f"\n# key {CANARY}, WANDB_API_KEY=abcdef0123, https://me:hunter2@host/x\n")
    (tmp_path / "outside.log").write_text("private")
    (run.folder / "link.log").symlink_to(tmp_path / "outside.log")
    (run.folder / "token=hunter2.log").write_text("a name")
    os.mkfifo(run.folder / "pipe.log")
    variables = {
        "NCCL_SECRET": "hunter2",
        "SLURM_JWT": "hunter2",
        "MY_TOKEN": "hunter2",
        "SLURM_COMMENT": f"token={CANARY}",
    }
    parts = bundle(run.folder, tmp_path / "b.tar.gz", **variables)
    told = "".join([*parts, *parts.values()])
    assert (tmp_path / "b.tar.gz").stat().st_mode & 0o777 == 0o600
    assert not [secret for secret in (CANARY, "hunter2", "abcdef0123", "private") if secret in told]
