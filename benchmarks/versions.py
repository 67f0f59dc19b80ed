"""Is this version as fast as another one? Three stages of both, side by side, on the same data.

    git worktree add ../before v0.1.0
    python benchmarks/versions.py --before ../before          # about ten minutes on two cores; nothing else may run

Each stage runs as users run it, in a process of its own: training steps of the VQ-VAE and of the top prior (median
seconds of a step), and a song (seconds of sampling, all levels). Both versions run at the same time, each bound to a core
of its own, and change cores every round: what else slows the machine slows both. Both read what the older version wrote.
benchmarks/results/versions.json keeps the medians, and of every stage the median ratio of a round with its quartiles.
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
SECONDS = 4.0  # of the song


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
                pair = side_by_side(measure, trees, data, f"{stage}-{turn}", swap=bool(turn % 2))
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


Measure = Callable[[Path, Path, Path, int], float]


def side_by_side(
    measure: Measure, trees: dict[str, Path], data: Path, name: str, swap: bool
) -> dict[str, float]:
    """Seconds of each version, measured at the same time on two cores."""
    figures: dict[str, float] = {}
    cores = sorted(os.sched_getaffinity(0))[:2]
    if swap:
        cores.reverse()

    def measured(version: str, core: int) -> None:
        figures[version] = measure(trees[version], data, data / f"{version}-{name}", core)

    threads = [
        threading.Thread(target=measured, args=args) for args in zip(trees, cores, strict=True)
    ]
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


def run(tree: Path, *command: str, core: int = 0) -> None:
    """One command of the version in `tree`, one thread, on one core."""
    own = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["taskset", "--cpu-list", str(core), sys.executable, *command],
        env={**os.environ, **own, "PATH": path},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


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


def train(tree: Path, stage: str, shards: Path, out: Path, steps: int, core: int = 0) -> None:
    # The names of version 0.1, which every later version reads too.
    settings = {"steps": steps, "log_every": 1, "evaluate_every": 1000, "save_every": 1000}
    overrides = [f"training.{stage}.{name}={value}" for name, value in settings.items()]
    entry = str(tree / "megajukebox/train.py")
    command = [entry, stage, "--preset", "tiny", "--data", str(shards), "--out", str(out)]
    run(tree, *command, *overrides, core=core)


def step_seconds(stage: str, shards: str) -> Measure:
    def measure(tree: Path, data: Path, out: Path, core: int) -> float:
        train(tree, stage, data / shards, out, STEPS, core)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        steps = [row["step_seconds"] for row in rows if row.get("split") == "train"]
        return statistics.median(steps[WARM_UP:])

    return measure


def song_seconds(tree: Path, data: Path, out: Path, core: int) -> float:
    entry = str(tree / "megajukebox/sample.py")
    options = ["--seconds", str(SECONDS), "--seed", "1", "--out", str(out)]
    run(tree, entry, str(data / "runs"), *options, core=core)
    (record,) = [
        json.loads(path.read_text()) for path in out.glob("*.json") if path.name != "summary.json"
    ]
    return sum(level["wall_seconds"] for level in record["levels"].values())


STAGES: dict[str, Measure] = {
    "vqvae": step_seconds("vqvae", "songs"),
    "top_prior": step_seconds("top_prior", "codes"),
    "song": song_seconds,
}

if __name__ == "__main__":
    typer.run(main)
