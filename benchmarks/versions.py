"""Is this version as fast as another one? Three stages of both, side by side on one core.

    git worktree add ../before v0.1.0
    python benchmarks/versions.py --before ../before          # a quarter of an hour

Each stage runs as users run it, in a process of its own: training steps of the VQ-VAE and of the top prior (median
seconds of a step), and a song (processor seconds of the whole command). Both versions run at the same time on the same
core, which the kernel shares out evenly: what else slows the machine slows both alike. So seconds are those of half a
core. Both read what the older version wrote. benchmarks/results/versions.json keeps the medians, and of every stage the
median ratio of a round with its quartiles.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "versions.json"
STEPS = 40
WARM_UP = 10  # steps that are left out: caches, the first allocations
SECONDS = 12.0  # of the song


def main(
    before: Annotated[Path, typer.Option(help="Checkout of the other version.")],
    rounds: Annotated[int, typer.Option(min=2, help="Runs of each stage and version.")] = 8,
) -> None:
    """Compare the speed of two versions."""
    trees = {"before": before.resolve(), "now": ROOT}
    seconds: dict[str, dict[str, list[float]]] = {stage: defaultdict(list) for stage in STAGES}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        make_data(before, data)
        for turn in range(rounds):
            for stage, measure in STAGES.items():
                pair = side_by_side(measure, trees, data, f"{stage}-{turn}")
                for name, figure in pair.items():
                    seconds[stage][name].append(figure)
                print(f"{stage:10s} {pair['before']:.4f} s {pair['now']:.4f} s", flush=True)
    report = {stage: summary(**versions) for stage, versions in seconds.items()}
    for stage, figures in report.items():
        print(
            f"{stage}: {figures['before']:.4f} s before, {figures['now']:.4f} s now; ratio of a round "
            f"{figures['ratio']:.3f} ({figures['quartiles'][0]:.3f} to {figures['quartiles'][2]:.3f})"
        )
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


Measure = Callable[[Path, Path, Path], float]


def side_by_side(
    measure: Measure, trees: dict[str, Path], data: Path, name: str
) -> dict[str, float]:
    """Seconds of each version, measured at the same time on one core."""
    figures: dict[str, float] = {}

    def measured(version: str) -> None:
        figures[version] = measure(trees[version], data, data / f"{version}-{name}")

    threads = [threading.Thread(target=measured, args=(version,)) for version in trees]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return figures


def summary(before: list[float], now: list[float]) -> dict[str, Any]:
    ratios = [mine / other for mine, other in zip(now, before, strict=True)]
    return {
        "before": statistics.median(before),
        "now": statistics.median(now),
        "ratio": statistics.median(ratios),
        "quartiles": statistics.quantiles(ratios),
        "all": {"before": before, "now": now},
    }


def run(tree: Path, *command: str) -> float:
    """One command of the version in `tree`, one thread, on the first core. Returns its processor seconds."""
    own = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    core = str(min(os.sched_getaffinity(0)))
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            ["taskset", "--cpu-list", core, sys.executable, *command],
            env={**os.environ, **own, "PATH": path},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{command}: {output.read()[-4000:]}")
    return used.ru_utime + used.ru_stime


def make_data(tree: Path, data: Path) -> None:
    """Songs, codes and a run of every stage, made by the version in `tree`."""
    run(
        tree,
        "-m",
        "megajukebox.cli",
        "prepare",
        "demo:9",
        "--out",
        str(data / "songs"),
        "--preset",
        "tiny",
    )
    train(tree, "vqvae", data / "songs", data / "runs/vqvae", 2)
    encode = str(tree / "megajukebox/encode.py")
    run(
        tree,
        encode,
        str(data / "songs"),
        "--vqvae",
        str(data / "runs/vqvae"),
        "--out",
        str(data / "codes"),
    )
    for stage in ("top_prior", "middle_upsampler", "bottom_upsampler"):
        train(tree, stage, data / "codes", data / "runs" / stage, 2)


def train(tree: Path, stage: str, shards: Path, out: Path, steps: int) -> None:
    # The names of version 0.1, which every later version reads too.
    settings = {"steps": steps, "log_every": 1, "evaluate_every": 1000, "save_every": 1000}
    overrides = [f"training.{stage}.{name}={value}" for name, value in settings.items()]
    entry = str(tree / "megajukebox/train.py")
    command = [entry, stage, "--preset", "tiny", "--data", str(shards), "--out", str(out)]
    run(tree, *command, *overrides)


def step_seconds(stage: str, shards: str) -> Measure:
    def measure(tree: Path, data: Path, out: Path) -> float:
        train(tree, stage, data / shards, out, STEPS)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        steps = [row["step_seconds"] for row in rows if row.get("split") == "train"]
        return statistics.median(steps[WARM_UP:])

    return measure


def song_seconds(tree: Path, data: Path, out: Path) -> float:
    entry = str(tree / "megajukebox/sample.py")
    options = ["--seconds", str(SECONDS), "--seed", "1", "--out", str(out)]
    return run(tree, entry, str(data / "runs"), *options)


STAGES: dict[str, Measure] = {
    "vqvae": step_seconds("vqvae", "songs"),
    "top_prior": step_seconds("top_prior", "codes"),
    "song": song_seconds,
}

if __name__ == "__main__":
    typer.run(main)
