"""Chaos soak: a run on an emulated SLURM cluster of four nodes is killed, stopped, damaged and starved by dice.

    python benchmarks/soak.py --minutes 60 --seed 1 --out benchmarks/results/soak.json       # make soak
    python benchmarks/soak.py --faults kill,flip,signal --every 12 --steps 60                 # minutes

At the end the losses and the final weights must be those of an undisturbed run, to the last bit. The goodput, the share
of the time in which steps were trained that counted, is compared with (1 - start - (restart + lost) / M) / (1 + save).
Needs root (a small disk is mounted), SLURM and munge.
"""

import contextlib
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fixtures.interrupted_runs import NANO, alone, environment_of, fingerprint, losses, pids, start  # noqa: E402
from fixtures.interrupted_runs import steps as last_step  # noqa: E402
from fixtures.slurm_cluster import Cluster  # noqa: E402
from fixtures.tiny_shards import write_codes  # noqa: E402

from megajukebox.common.provenance import made_by  # noqa: E402
from megajukebox.records.jsonl_tail import read_lines  # noqa: E402
from megajukebox.resilience.restart_policy import MAX_FRUITLESS_ATTEMPTS, attempts_without_progress  # noqa: E402
from megajukebox.training.checkpoint import candidates  # noqa: E402

STEP = 0.5  # seconds by which a step is made longer
SAVE_EVERY = 20
DISK = "48m"


class Monkey:
    """Every method is a fault; the dice choose which, when and where."""

    def __init__(self, cluster: Cluster, job: str, out: Path, seed: int) -> None:
        self.cluster, self.job, self.out, self.dice = cluster, job, out, random.Random(seed)

    def kill(self) -> None:
        """One rank, without warning."""
        self._signal(self.dice.choice(pids(self.out)), signal.SIGKILL)

    def kill_all(self) -> None:
        """All ranks at once."""
        for pid in pids(self.out):
            self._signal(pid, signal.SIGKILL)

    def freeze(self) -> None:
        """One rank stops answering, as with a hung GPU or a dead file system."""
        self._signal(self.dice.choice(pids(self.out)), signal.SIGSTOP)

    def flip(self) -> None:
        """One bit of the newest checkpoint, then a rank is killed."""
        path = self._part()
        data = bytearray(path.read_bytes())
        place = self.dice.randrange(len(data) * 8)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        self.kill()

    def truncate(self) -> None:
        """A file of the newest checkpoint is cut, then a rank is killed."""
        path = self._part()
        os.truncate(path, self.dice.randrange(path.stat().st_size))
        self.kill()

    def fill(self) -> None:
        """The disk is full until a save has failed."""
        before, ballast = len(self._events("save_failed")), self.out.parent / "ballast"
        with ballast.open("wb") as file:
            file.write(b"0" * max(0, shutil.disk_usage(self.out).free - 50_000))
        wait(lambda: len(self._events("save_failed")) > before, 60)
        ballast.unlink()

    def signal(self) -> None:
        """SLURM's warning that the time is up."""
        self.cluster.ask("scancel", "--signal=USR1", "--batch", self._running())

    def terminate(self) -> None:
        """SIGTERM to one rank alone."""
        self._signal(self.dice.choice(pids(self.out)), signal.SIGTERM)

    def requeue(self) -> None:
        """An operator requeues the job."""
        self.cluster.ask("scontrol", "requeue", self._running())

    def node(self) -> None:
        """A node's daemon dies (its ranks live on, unreachable); the node is mended a minute later."""
        names = self.cluster.ask("squeue", "-h", "-j", self.job, "-t", "R", "-o", "%N")
        node = self.dice.choice(self.cluster.ask("scontrol", "show", "hostnames", names).split())
        self.cluster.stop_node(node)
        time.sleep(40)
        self.cluster.start_node(node)

    def _running(self) -> str:
        return self.cluster.ask("squeue", "-h", "-j", self.job, "-t", "R", "-o", "%i")

    def _part(self) -> Path:
        """A file of the newest checkpoint."""
        wait(
            lambda: len(candidates(self.out)) > 1, 120
        )  # the only one must not go: a person would be called
        return self.dice.choice(sorted(candidates(self.out)[0].rglob("*.pt")))

    def _events(self, name: str) -> list[dict]:
        return [event for event in read_lines(self.out / "events.jsonl") if event["event"] == name]

    @staticmethod
    def _signal(pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


FAULTS = [name for name in vars(Monkey) if not name.startswith("_")]


def wait(done, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (found := done()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(found)


def main(
    minutes: Annotated[
        float,
        typer.Option(help="About how long training takes undisturbed, unless --steps is given."),
    ] = 60,
    steps: Annotated[int | None, typer.Option(help="Steps of the run.")] = None,
    every: Annotated[
        float, typer.Option(help="Mean seconds between a recovery and the next fault.")
    ] = 100,
    faults: Annotated[str, typer.Option(help="Which, or all: " + ", ".join(FAULTS))] = "all",
    seed: Annotated[int, typer.Option(help="Of the dice.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Where the report goes, as JSON.")] = None,
) -> None:
    """Disturb a run until it is done; exit status 1 if it did not end as the undisturbed one."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # taking the cluster down
    chosen = FAULTS if faults == "all" else faults.split(",")
    steps = steps or int(minutes * 60 * 0.7 / (STEP + 0.1))
    with tempfile.TemporaryDirectory(prefix="soak") as name:
        folder = Path(name)
        data = write_codes(folder / "codes")
        # In an hour of steps so small a prior has more spikes of its own than a run may have: no fault of the machine.
        settings = [
            f"steps={steps}",
            f"checkpointing.every={SAVE_EVERY}",
            "schedule.lr_scale=0.3",
            "spikes.threshold_std=0",
        ]
        straight = folder / "straight"
        mpirun = [
            "mpirun",
            "--allow-run-as-root",
            "--oversubscribe",
            "--bind-to",
            "none",
            "-n",
            "2",
        ]
        undisturbed = start([*mpirun, *alone(data, straight, *settings)])
        try:
            report = disturbed(folder, data, settings, chosen, every, seed)
            assert undisturbed.wait() == 0, (
                f"the undisturbed run failed: {straight.with_suffix('.txt').read_text()}"
            )
            report |= judged(folder / "disk/runs/top_prior", straight, report)
        finally:
            subprocess.run(["umount", "--lazy", str(folder / "disk")], check=False)
    text = json.dumps(report, indent=1)
    print(text)
    if out:
        out.write_text(text + "\n")
    raise SystemExit(0 if report["same_losses"] and report["same_weights"] else 1)


def disturbed(
    folder: Path, data: Path, settings: list[str], chosen: list[str], every: float, seed: int
) -> dict:
    """Submit the run, strike it until it is done, and tell what each strike cost."""
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)], check=True)
    cluster = Cluster(folder / "cluster")
    cluster.environment |= environment_of(f"slow={STEP}", folder) | {
        "PATH": f"{environment_of()['PATH']}:/usr/sbin:/sbin"
    }
    try:
        cluster.start()
        job, begun = submit(cluster, folder, data, settings), time.time()
        out = disk / "runs/top_prior"
        strikes = strike_until_done(Monkey(cluster, job, out, seed), out, chosen, every)
        return {"seed": seed, "seconds": time.time() - begun, "begun": begun, "strikes": strikes}
    finally:
        cluster.stop()


def submit(cluster: Cluster, folder: Path, data: Path, settings: list[str]) -> str:
    timeouts = ("watchdog.step_timeout_seconds=10", "watchdog.phase_timeout_seconds=120")
    overrides = [f"training.top_prior.{setting}" for setting in (*settings, *timeouts)]
    variables = {
        "PROFILE": "cpu",
        "PRESET": str(NANO),
        "SHARDS": str(data.parent),
        "RUNS": str(folder / "disk/runs"),
    }
    variables |= {"SETTINGS": " ".join(overrides), "VENV": str(Path(sys.executable).parents[1])}
    (folder / "disk/runs").mkdir()
    options = (
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=1",
        "--array=1-500%1",
        f"--output={folder}/log-%A.txt",
    )
    return cluster.sbatch("slurm/top_prior.sh", *options, cwd=ROOT, **variables)


def strike_until_done(monkey: Monkey, out: Path, chosen: list[str], every: float) -> list[dict]:
    strikes: list[dict] = []
    order = monkey.dice.sample(chosen, len(chosen))  # each kind once, then by the dice
    wait(lambda: trained_since(out, 0), 300)
    while not (out / "DONE").exists():
        called = [
            e
            for e in read_lines(out / "events.jsonl")
            if e["event"] == "attempt_end" and e.get("kind") == "fatal"
        ]
        if called:
            raise RuntimeError(f"a person was called: {called[-1]['reason']}")
        if wait((out / "DONE").exists, min(4 * every, monkey.dice.expovariate(1 / every))):
            break
        # Three attempts without a new checkpoint call a person, as they should: here nobody comes.
        wait(
            lambda: (
                (out / "DONE").exists()
                or attempts_without_progress(out) < MAX_FRUITLESS_ATTEMPTS - 1
            ),
            400,
        )
        name = order.pop() if order else monkey.dice.choice(chosen)
        at, reached = time.time(), last_step(out)
        getattr(monkey, name)()
        recovered = wait(lambda at=at, name=name: recovery(out, at, name), 400)
        seconds = round(recovery(out, at, name) - at, 1) if recovered else None
        again = reached - (reached if (resumed := resumed_at(out, at)) is None else resumed)
        strikes.append(
            {"fault": name, "at": at, "recovered_seconds": seconds, "lost_steps": max(0, again)}
        )
        print(strikes[-1], flush=True)
    return strikes


def trained_since(out: Path, at: float) -> float:
    """When the first step after `at` was logged; 0 if none was."""
    lines = read_lines(out / "metrics.jsonl")
    return next(
        (line["time"] for line in lines if line["time"] > at and line["split"] == "train"), 0.0
    )


def recovery(out: Path, at: float, name: str) -> float:
    """When the run was itself again after a strike: a new start trains, or after a full disk, a save succeeds."""
    events = read_lines(out / "events.jsonl")
    wanted = ("save",) if name == "fill" else ("resume", "done")
    first = next((e["time"] for e in events if e["time"] > at and e["event"] in wanted), 0.0)
    if name == "fill" or (out / "DONE").exists():
        return first
    return trained_since(out, first) if first else 0.0


def resumed_at(out: Path, at: float) -> int | None:
    """The step from which the run went on after `at`."""
    return next(
        (
            e["step"]
            for e in read_lines(out / "events.jsonl")
            if e["time"] > at and e["event"] == "resume"
        ),
        None,
    )


def judged(out: Path, straight: Path, report: dict) -> dict:
    """The disturbed run beside the undisturbed one, and its goodput beside the formula's."""
    events, metrics = read_lines(out / "events.jsonl"), read_lines(out / "metrics.jsonl")
    steps = [line for line in metrics if line["split"] == "train"]
    useful = sum(line["step_seconds"] + STEP for line in steps)
    saves = [event["seconds"] for event in events if event["event"] == "save"]
    restarts = [s for s in report["strikes"] if s["fault"] != "fill" and s["recovered_seconds"]]
    step = useful / max(1, len(steps))
    between = report["seconds"] / max(1, len(restarts))
    restart = statistics.mean(s["recovered_seconds"] for s in restarts) if restarts else 0.0
    again = statistics.mean(s["lost_steps"] for s in restarts) * step if restarts else 0.0
    save = statistics.mean(saves) / (SAVE_EVERY * step)
    start = min(line["time"] for line in steps) - report["begun"]
    recovered: dict[str, list[float]] = {}
    for strike in report["strikes"]:
        if strike["recovered_seconds"]:
            recovered.setdefault(strike["fault"], []).append(strike["recovered_seconds"])
    return {
        "same_losses": losses(out) == losses(straight),
        "same_weights": fingerprint(out) == fingerprint(straight),
        "steps": len(steps),
        "goodput": useful / report["seconds"],
        "goodput_by_formula": (1 - start / report["seconds"] - (restart + again) / between)
        / (1 + save),
        "median_recovery_seconds": {
            name: statistics.median(found) for name, found in recovered.items()
        },
        "events": Counter(event["event"] for event in events),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
        "commit": made_by()["commit"],
    }


if __name__ == "__main__":
    typer.run(main)
