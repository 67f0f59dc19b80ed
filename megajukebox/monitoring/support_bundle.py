"""One archive of state and logs of a run for support: text only, small, and without secrets."""

import io
import json
import os
import tarfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from megajukebox.common.redaction import HIDDEN, is_secret, redact, redacted
from megajukebox.monitoring.collect.host import machine
from megajukebox.monitoring.collect.run_reader import RunReader
from megajukebox.monitoring.doctor import checks
from megajukebox.monitoring.exporters.terminal import as_json

TEXTS = (
    "events.jsonl",
    "metrics.jsonl",
    "run.yaml",
    "model.json",
    "generation.json",
    "slurm_chain.json",
    "rewinds.json",
    "heartbeats/*.json",
    "exits/*.json",
    "hangs/*",
    "*.log",
    "logs/*",
)
MAX_BYTES = 2 << 20  # of one file; of a longer one the end
VARIABLES = (
    "SLURM",
    "NCCL",
    "TORCH",
    "CUDA",
    "DEEPSPEED",
    "DS_",
    "OMP_",
    "MASTER_",
    "RANK",
    "WORLD_SIZE",
    "GLOO",
)


def write_bundle(run: Path, out: Path) -> int:
    """Write the .tar.gz; returns how many files are in it."""
    parts = dict(contents(run))
    partial = out.with_name(f"{out.name}.partial")
    with tarfile.open(partial, "w:gz") as tar:
        for name, text in parts.items():
            data = text.encode("utf-8", "replace")
            member = tarfile.TarInfo(f"{run.resolve().name}/{name}")
            member.size = len(data)
            member.mtime = int(time.time())
            tar.addfile(member, io.BytesIO(data))
    os.replace(partial, out)
    return len(parts)


def contents(run: Path) -> Iterator[tuple[str, str]]:
    """Name and text of every part, secrets hidden."""
    yield (
        "state.json",
        json.dumps(redacted(as_json([RunReader(run, run.resolve().name).read()])), indent=1),
    )
    findings = [
        checks.check_versions(),
        checks.check_gpus(),
        checks.check_locks(),
        checks.check_run(run),
    ]
    yield "doctor.json", json.dumps(redacted([asdict(finding) for finding in findings]), indent=1)
    yield "machine.json", json.dumps(redacted(asdict(machine())), indent=1)
    yield "environment.json", json.dumps(environment(), indent=1)
    files = []  # every file of the run with its size and age
    for path in sorted(run.rglob("*")):
        facts = path.lstat()
        age = time.time() - facts.st_mtime
        files.append(f"{facts.st_size:>14} {age:>10.0f} s {path.relative_to(run)}")
    yield "files.txt", "\n".join(files)
    for pattern in TEXTS:
        for path in sorted(run.glob(pattern)):
            # A file of the run itself, not something that a link in it leads to.
            if path.is_file() and path.resolve().is_relative_to(run.resolve()):
                yield str(path.relative_to(run)), redact(end_of(path))


def environment() -> dict[str, str]:
    """Variables of SLURM, NCCL, torch and the launchers; no others, and none that is a secret."""
    known = {}
    for name, value in sorted(os.environ.items()):
        if name.startswith(VARIABLES):
            known[name] = HIDDEN if is_secret(name) else redact(value)
    return known


def end_of(path: Path) -> str:
    """The text of a file, of a long one its last MAX_BYTES; what is no UTF-8 is replaced."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - MAX_BYTES))
        return file.read().decode("utf-8", "replace")
