"""Training of the smallest prior through the real entry, with whatever launcher and faults a test wants."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from conftest import environment
from test_training import fingerprint, losses  # noqa: F401

from megajukebox.monitoring.metrics import read_lines
from megajukebox.training.launch import free_port

ROOT = Path(__file__).parents[1]
NANO = ROOT / "tests/data/nano.yaml"
PATIENCE = 240.0  # seconds that a start may take on a busy machine


def environment_of(fault: str = "", marks: Path | None = None) -> dict[str, str]:
    """Of a process that trains, here and not where pytest was installed; a fault, if given, strikes it."""
    paths = [str(ROOT), str(ROOT / "tests/strike")] if fault else [str(ROOT)]
    more = {"PYTHONPATH": os.pathsep.join(paths)}
    return environment() | more | ({"FAULT": fault, "FAULT_MARKS": str(marks)} if fault else {})


def training(data: Path, out: Path, *settings: str) -> list[str]:
    """The words after `megajukebox`, or after the entry's path."""
    told = [f"training.top_prior.{setting}" if "=" in setting else setting for setting in settings]
    return ["train", "top_prior", "--preset", str(NANO), "--data", str(data), "--out", str(out), *told]


def alone(data: Path, out: Path, *settings: str) -> list[str]:
    return [sys.executable, "-m", "megajukebox.cli", *training(data, out, *settings)]


def by_deepspeed(data: Path, out: Path, *settings: str, ranks: int = 2) -> list[str]:
    entry = [str(ROOT / "megajukebox/train.py"), *training(data, out, *settings)[1:]]
    return ["deepspeed", "--log_level", "warning", "--num_gpus", str(ranks), "--master_port", str(free_port()), *entry]


def start(command: list[str], env: dict[str, str] | None = None) -> subprocess.Popen:
    """In the background, as the leader of a process group of its own; what it prints goes to `<out>.txt`."""
    out = Path(command[command.index("--out") + 1])
    with out.with_suffix(".txt").open("ab") as file:
        return subprocess.Popen(
            command, env=env or environment_of(), stdout=file, stderr=file, cwd=ROOT, start_new_session=True
        )


def finish(process: subprocess.Popen) -> int:
    try:
        return process.wait(PATIENCE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(command: list[str], env: dict[str, str] | None = None) -> int:
    return finish(start(command, env))


def printed(out: Path) -> str:
    return out.with_suffix(".txt").read_text()


def wait_until(done: Callable[[], object], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.05)


def steps(out: Path) -> int:
    """The last step that was logged."""
    return max((line["step"] for line in read_lines(out / "metrics.jsonl")), default=0)


def events(out: Path, *names: str) -> list[dict]:
    return [event for event in read_lines(out / "events.jsonl") if not names or event["event"] in names]


def ends(out: Path) -> list[dict]:
    """What each rank left of its end."""
    return [json.loads(path.read_text()) for path in sorted((out / "exits").glob("rank-*.json"))]


def pids(out: Path) -> list[int]:
    """Of all ranks, by their heartbeats."""
    return [json.loads(path.read_text())["pid"] for path in sorted((out / "heartbeats").glob("rank-*.json"))]
