"""Seconds from the death of a rank until the run trains again, with a warm standby and without, in turn.

    python benchmarks/restart.py --launcher mpirun --restarts 5 --out benchmarks/results/restart.json
    python benchmarks/restart.py --launcher srun              # an emulated cluster; takes SLURM and munge
    python benchmarks/restart.py --launcher deepspeed

Two supervised runs of the smallest prior on two ranks, one with `--standby` and one with `--no-standby`, take turns: a
rank of one is killed while the other is stopped. The time ends when the first step after that is logged; both runs must
end with the same weights. The processor time of each restart is told beside it: it does not depend on what else the
machine does. Memory of the standby is its own (USS) and its share (PSS).
"""

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fixtures.interrupted_runs import (  # noqa: E402
    NANO,
    by_deepspeed,
    environment_of,
    losses,
    pids,
    training,
    wait_until,
)
from fixtures.interrupted_runs import steps as last_step  # noqa: E402
from fixtures.slurm_cluster import Cluster  # noqa: E402
from fixtures.tiny_shards import write_codes  # noqa: E402

from megajukebox.common.provenance import made_by  # noqa: E402
from megajukebox.records.jsonl_tail import read_lines  # noqa: E402

STEP = 0.3  # seconds by which a step is made longer
STEPS = 100_000  # never reached
SETTLED_STEPS = 8  # after a restart, before the next fault: the standby has warmed up
LIMIT = 600.0
PHASES = ("attempt_end", "preflight", "resume")


class SupervisedRun:
    """One run under `supervise`, whose ranks can be killed and which can be told to finish."""

    def __init__(self, folder: Path, launcher: str, data: Path, standby: bool) -> None:
        self.out = folder / ("warm" if standby else "cold") / "top_prior"
        self.out.parent.mkdir()
        self.launcher = launcher
        self.data = data
        self.standby = standby
        self.nodes = 2 if launcher == "srun" else 1
        self.process: subprocess.Popen | None = None

    def start(self, cluster: Cluster | None) -> None:
        settings = [
            f"steps={STEPS}",
            "watchdog.step_timeout_seconds=600",
            "evaluation.every=100000",
        ]
        settings.append(f"checkpointing.every={SETTLED_STEPS // 2}")
        if cluster:
            self._submit(cluster, settings)
            return
        command = by_deepspeed(self.data, self.out, *settings)
        if self.launcher == "mpirun":
            mpirun = "mpirun --allow-run-as-root --oversubscribe --bind-to none -n 2"
            command = [*mpirun.split(), "megajukebox", *training(self.data, self.out, *settings)]
        option = "--standby" if self.standby else "--no-standby"
        with self.out.with_suffix(".txt").open("ab") as file:
            self.process = subprocess.Popen(
                ["megajukebox", "supervise", "--preflight", option, str(self.out), "--", *command],
                env=environment_of(f"slow={STEP}", self.out.parent),
                stdout=file,
                stderr=file,
                cwd=ROOT,
                start_new_session=True,
            )

    def _submit(self, cluster: Cluster, settings: list[str]) -> None:
        variables = {
            "PROFILE": "cpu",
            "PRESET": str(NANO),
            "SHARDS": str(self.data.parent),
            "RUNS": str(self.out.parent),
            "SETTINGS": " ".join(f"training.top_prior.{setting}" for setting in settings),
            "VENV": str(Path(sys.executable).parents[1]),
            "STANDBY": "1" if self.standby else "",
        }
        options = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1"]
        options.append(f"--output={self.out.parent}/log.txt")
        cluster.environment |= environment_of(f"slow={STEP}", self.out.parent) | {
            "PATH": cluster.environment["PATH"]
        }
        cluster.sbatch("slurm/top_prior.sh", *options, cwd=ROOT, **variables)

    def kill_a_rank(self) -> dict[str, float]:
        """Kill the last rank; what it took until a step was logged again."""
        if self.standby:
            wait_until(lambda: warm_standbys() >= self.nodes, LIMIT)
        before = last_step(self.out)
        killed = time.time()
        os.kill(pids(self.out)[-1], signal.SIGKILL)
        wait_until(lambda: self.trained_since(killed), LIMIT)
        resumed = self.trained_since(killed)
        wait_until(lambda: last_step(self.out) >= before + SETTLED_STEPS, LIMIT)
        (event, *_) = [e for e in self.events("resume") if e["time"] > killed]
        assert (event.get("standby") == "warm") == self.standby, event
        return self.phases(killed) | {"seconds": round(resumed - killed, 2)}

    def events(self, *names: str) -> list[dict]:
        return [e for e in read_lines(self.out / "events.jsonl") if e["event"] in names]

    def phases(self, killed: float) -> dict[str, float]:
        """Seconds after the kill at which the supervisor knew, the doctor was done, and the run was loaded."""
        reached = {}
        for event in self.events(*PHASES):
            if event["time"] > killed:
                reached.setdefault(event["event"], round(event["time"] - killed, 2))
        return reached

    def trained_since(self, when: float) -> float:
        """When the first step of an attempt that began after `when` was logged; 0 if none was."""
        began = [e["time"] for e in self.events("resume") if e["time"] > when]
        for line in read_lines(self.out / "metrics.jsonl") if began else []:
            if line["time"] > began[0] and line["split"] == "train":
                return line["time"]
        return 0.0

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Inside, it takes no processor time."""
        processes = []
        for pid in pids(self.out):
            with suppress(psutil.NoSuchProcess):
                processes.append(psutil.Process(pid))
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    def finish(self) -> None:
        """Ask it to save and stop."""
        (self.out / "STOP").touch()
        if self.process:
            self.process.wait(LIMIT)


def standbys() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "megajukebox.resilience.standby" in (process.info["cmdline"] or []):
            found.append(process)
    return found


def warm_standbys() -> int:
    """Standbys that would start a rank now."""
    addresses = {process.cmdline()[-1] for process in standbys()}
    return sum(len(list(Path(address).glob("*.start"))) for address in addresses)


def memory_of_standby() -> dict[str, float]:
    """Megabytes of the largest one that runs: its own, its share of what is shared, all that it maps."""
    largest = {"uss": 0.0, "pss": 0.0, "rss": 0.0}
    for process in standbys():
        with suppress(psutil.NoSuchProcess):
            facts = process.memory_full_info()
            if facts.rss > largest["rss"] * 1e6:
                figures = {"uss": facts.uss, "pss": facts.pss, "rss": facts.rss}
                largest = {name: round(value / 1e6, 1) for name, value in figures.items()}
    return largest


def main(
    launcher: Annotated[str, typer.Option(help="mpirun, deepspeed or srun.")] = "mpirun",
    restarts: Annotated[int, typer.Option(help="Of each of the two.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Add the report to this JSON.")] = None,
) -> None:
    """Kill ranks of both runs in turn, and compare how long they stand still."""
    report: dict[str, Any] = {"launcher": launcher, "warm": [], "cold": []}
    with tempfile.TemporaryDirectory(prefix="restart") as name:
        folder = Path(name)
        data = write_codes(folder / "codes")
        cluster = Cluster(folder / "cluster") if launcher == "srun" else None
        if cluster:
            cluster.environment["PATH"] = f"{environment_of()['PATH']}:/usr/sbin:/sbin"
            cluster.start()
        runs = [SupervisedRun(folder, launcher, data, standby) for standby in (True, False)]
        try:
            for run in runs:
                run.start(cluster)
                wait_until(lambda run=run: last_step(run.out) >= SETTLED_STEPS, LIMIT)
            report["standby_megabytes"] = memory_of_standby()
            for _ in range(restarts):
                for run, other in (runs, runs[::-1]):
                    with other.stopped():
                        restart = run.kill_a_rank()
                    report["warm" if run.standby else "cold"].append(restart)
                    print("warm" if run.standby else "cold", restart, flush=True)
            for run in runs:
                run.finish()
            report["load"] = round(os.getloadavg()[0], 1)
        finally:
            for run in runs:
                if run.process and run.process.poll() is None:
                    os.killpg(run.process.pid, signal.SIGTERM)
            if cluster:
                cluster.stop()
        same = min(len(losses(run.out)) for run in runs)
        report["same_losses"] = losses(runs[0].out)[:same] == losses(runs[1].out)[:same]
        report["steps"] = same
    for kind in ("warm", "cold"):
        report[f"median_{kind}_seconds"] = statistics.median(r["seconds"] for r in report[kind])
    report["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    report["made_by"] = made_by()
    print(json.dumps(report, indent=1))
    if out:
        reports = json.loads(out.read_text()) if out.exists() else {}
        out.write_text(json.dumps(reports | {launcher: report}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
