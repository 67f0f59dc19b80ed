"""Runs to TensorBoard, or to Weights & Biases: scalars, recordings with their spectrograms, events.

    megajukebox publish-metrics runs/ --tensorboard boards/                  # then: tensorboard --logdir boards/
    megajukebox publish-metrics runs/ --tensorboard boards/ --follow 30      # goes on as the runs do, till Ctrl-C
    megajukebox publish-metrics runs/ --wandb megajukebox                    # offline; `wandb sync` later, or WANDB_MODE=online

Reads the run folders only, so that no step of training waits for a board. Secrets are hidden.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
import yaml

from megajukebox.common.command_line import run_command
from megajukebox.monitoring.exporters.tensorboard import (
    Copier,
    MetricSink,
    TensorBoard,
    WeightsAndBiases,
    runs_in,
)


def main(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or single runs.")],
    tensorboard: Annotated[
        Path | None, typer.Option(help="Folder for TensorBoard's event files.")
    ] = None,
    wandb: Annotated[
        str | None, typer.Option(help="A project there; offline unless WANDB_MODE says.")
    ] = None,
    follow: Annotated[
        float | None, typer.Option(min=1, help="Look again every so many seconds.")
    ] = None,
) -> None:
    """Copy what RUNS say about themselves to a board."""
    if (tensorboard is None) == (wandb is None):
        raise SystemExit("board: give either --tensorboard FOLDER or --wandb PROJECT")
    missing = [str(folder) for folder in runs if not folder.is_dir()]
    if missing:
        raise SystemExit(
            f"board: runs {missing[0]!r} is not a folder; give one that `megajukebox train` wrote into"
        )
    copiers: dict[Path, Copier] = {}
    try:
        with suppress(KeyboardInterrupt):
            for count in rounds(runs, copiers, tensorboard, wandb):
                if not follow:
                    print(
                        f"{count} records of {len(copiers)} runs copied to {tensorboard or wandb}"
                    )
                    return
                time.sleep(follow)
    except ImportError as error:
        extra = "wandb" if wandb else "tensorboard"
        raise SystemExit(f"board: {error}; pip install {extra}") from error


def rounds(
    runs: list[Path], copiers: dict[Path, Copier], tensorboard: Path | None, wandb: str | None
) -> Iterator[int]:
    """Copies what is new, again and again; yields how many records there were."""
    while True:
        for name, path in runs_in(runs):
            if path not in copiers:
                copiers[path] = Copier(path, board_of(name, path, tensorboard, wandb))
        yield sum(copier.copy() for copier in copiers.values())


def board_of(name: str, run: Path, tensorboard: Path | None, wandb: str | None) -> MetricSink:
    if tensorboard:
        return TensorBoard(tensorboard / name)
    path = run / "run.yaml"
    settings = yaml.safe_load(path.read_text()) if path.is_file() else {}
    return WeightsAndBiases(wandb or "", name, Path.cwd(), settings)


if __name__ == "__main__":
    run_command(main, "publish-metrics")
