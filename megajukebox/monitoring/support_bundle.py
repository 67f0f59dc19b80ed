"""One archive of state and logs of a run for support: text only, small, and without secrets."""

import contextlib
import io
import json
import os
import tarfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from megajukebox.common.files import atomic_open
from megajukebox.common.redaction import is_secret, redact, redacted
from megajukebox.common.untrusted_files import open_inside
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
BUNDLE_MODE = 0o600  # a bundle may hold lyrics, names and what no pattern knows as a secret
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
    """Write the .tar.gz, for its owner alone; returns how many files are in it."""
    parts = dict(contents(run))
    with atomic_open(out, BUNDLE_MODE) as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, text in parts.items():
            data = text.encode("utf-8", "replace")
            member = tarfile.TarInfo(f"{run.resolve().name}/{name}")
            member.size = len(data)
            member.mtime = int(time.time())
            tar.addfile(member, io.BytesIO(data))
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
    yield "files.txt", redact("\n".join(files))
    for pattern in TEXTS:
        for path in sorted(run.glob(pattern)):
            name = path.relative_to(run)
            # A file of the run itself, not something that a link in it leads to, nor a pipe.
            with contextlib.suppress(OSError):
                yield redact(str(name)), redact(end_of(open_inside(run, name)))


def environment() -> dict[str, str]:
    """Variables of SLURM, NCCL, torch and the launchers; no others, and none that is a secret."""
    known = {}
    for name, value in sorted(os.environ.items()):
        if name.startswith(VARIABLES) and not is_secret(name):
            known[name] = redact(value)
    return known


def end_of(file: BinaryIO) -> str:
    """The text of an open file, of a long one its last MAX_BYTES; what is no UTF-8 is replaced."""
    with file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_BYTES))
        return file.read(MAX_BYTES).decode("utf-8", "replace")
