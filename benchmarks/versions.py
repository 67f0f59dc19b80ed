"""Is this version as fast as another one? Three stages of both, in turn, on the same data.

    git worktree add ../before v0.1.0
    python benchmarks/versions.py --before ../before          # about ten minutes on two cores; nothing else may run

Each stage runs as users run it, in a process of its own, by turns of the two versions: training steps of the VQ-VAE and
of the top prior (median seconds of a step), and a song (seconds of sampling, all levels). Both read what the older
version wrote. benchmarks/results/versions.json keeps the medians and the ratio of every stage.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "versions.json"
STEPS = 40
WARM_UP = 10  # steps that are left out: caches, the first allocations
SECONDS = 4.0  # of the song


def main(
    before: Annotated[Path, typer.Option(help="Checkout of the other version.")],
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each version.")] = 5,
) -> None:
    """Compare the speed of two versions."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        make_data(before, data)
        seconds: dict[str, dict[str, list[float]]] = {}
        for turn in range(rounds):
            versions = [("before", before.resolve()), ("now", ROOT)]
            for name, tree in versions if turn % 2 else reversed(versions):
                for stage, measure in STAGES.items():
                    out = data / f"{name}-{stage}-{turn}"
                    figures = seconds.setdefault(stage, {}).setdefault(name, [])
                    figures.append(measure(tree, data, out))
                    print(f"{stage:10s} {name:7s} {figures[-1]:.4f} s", flush=True)
    report = {stage: summary(**versions) for stage, versions in seconds.items()}
    for stage, figures in report.items():
        print(
            f"{stage}: {figures['before']:.4f} s before, {figures['now']:.4f} s now ({figures['ratio']:.3f})"
        )
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


def summary(before: list[float], now: list[float]) -> dict[str, float | list[float]]:
    medians = {"before": statistics.median(before), "now": statistics.median(now)}
    return {**medians, "ratio": medians["now"] / medians["before"], "all": [*before, *now]}


def run(tree: Path, *command: str) -> None:
    """One command of the version in `tree`, one thread."""
    own = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, *command],
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


def train(tree: Path, stage: str, shards: Path, out: Path, steps: int) -> None:
    # The names of version 0.1, which every later version reads too.
    settings = {"steps": steps, "log_every": 1, "evaluate_every": 1000, "save_every": 1000}
    overrides = [f"training.{stage}.{name}={value}" for name, value in settings.items()]
    entry = str(tree / "megajukebox/train.py")
    run(
        tree, entry, stage, "--preset", "tiny", "--data", str(shards), "--out", str(out), *overrides
    )


def step_seconds(stage: str, shards: str) -> Callable[[Path, Path, Path], float]:
    def measure(tree: Path, data: Path, out: Path) -> float:
        train(tree, stage, data / shards, out, STEPS)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        steps = [row["step_seconds"] for row in rows if row.get("split") == "train"]
        return statistics.median(steps[WARM_UP:])

    return measure


def song_seconds(tree: Path, data: Path, out: Path) -> float:
    entry = str(tree / "megajukebox/sample.py")
    run(
        tree, entry, str(data / "runs"), "--seconds", str(SECONDS), "--seed", "1", "--out", str(out)
    )
    (record,) = [
        json.loads(path.read_text()) for path in out.glob("*.json") if path.name != "summary.json"
    ]
    return sum(level["wall_seconds"] for level in record["levels"].values())


STAGES: dict[str, Callable[[Path, Path, Path], float]] = {
    "vqvae": step_seconds("vqvae", "songs"),
    "top_prior": step_seconds("top_prior", "codes"),
    "song": song_seconds,
}

if __name__ == "__main__":
    typer.run(main)
