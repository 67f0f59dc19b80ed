"""Runs to TensorBoard, or to Weights & Biases: scalars, recordings with their spectrograms, events.

    megajukebox publish-metrics runs/ --tensorboard boards/                  # then: tensorboard --logdir boards/
    megajukebox publish-metrics runs/ --tensorboard boards/ --follow 30      # goes on as the runs do, till Ctrl-C
    megajukebox publish-metrics runs/ --wandb megajukebox                    # offline; `wandb sync` later, or WANDB_MODE=online

Reads the run folders only, so that no step of training waits for a board. Secrets are hidden.
"""

import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from megajukebox.common.command_line import run_command
from megajukebox.common.errors import UserError
from megajukebox.common.plain_text import plain
from megajukebox.monitoring.collect.run_reader import RunReader, named_runs
from megajukebox.monitoring.exporters.tensorboard import (
    Copier,
    MetricSink,
    TensorBoard,
    WeightsAndBiases,
)

log = logging.getLogger(__name__)


def main(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or single runs.")],
    tensorboard: Annotated[
        Path | None, typer.Option(help="Folder for TensorBoard's event files.")
    ] = None,
    wandb: Annotated[
        str | None,
        typer.Option(help="Project of Weights & Biases; offline unless WANDB_MODE is online."),
    ] = None,
    follow: Annotated[
        float | None, typer.Option(min=1, help="Continue: seconds between looks for new records.")
    ] = None,
) -> None:
    """Copy the metrics of RUNS to TensorBoard or Weights & Biases."""
    if (tensorboard is None) == (wandb is None):
        raise UserError("give either --tensorboard FOLDER or --wandb PROJECT")
    for folder in runs:
        if not folder.is_dir():
            raise UserError(
                f"runs {str(folder)!r} is not a folder; give one that `megajukebox train` wrote into"
            )
    copiers: dict[Path, Copier] = {}
    try:
        with suppress(KeyboardInterrupt):
            while True:
                copied = copy_new(runs, copiers, tensorboard, wandb)
                if not follow:
                    target = tensorboard or wandb
                    print(f"{copied} records of {len(copiers)} runs copied to {target}")
                    return
                time.sleep(follow)
    except ImportError as error:
        extra = "wandb" if wandb else "tensorboard"
        raise UserError(f"{error}; pip install {extra}") from error


def copy_new(
    runs: list[Path], copiers: dict[Path, Copier], tensorboard: Path | None, wandb: str | None
) -> int:
    """Copy what is new in all runs, those that began meanwhile included; returns how many records there were."""
    for name, path in named_runs(runs):
        if path in copiers:
            continue
        sink: MetricSink
        if tensorboard:
            sink = TensorBoard(tensorboard / name)
        else:
            settings = RunReader(path, name).read_settings()
            sink = WeightsAndBiases(wandb or "", name, Path.cwd(), settings)
        copiers[path] = Copier(path, sink)
    copied = 0
    for path, copier in copiers.items():
        try:
            copied += copier.copy()
        except ImportError:  # the board's own package, which the user can install
            raise
        except Exception as error:  # a file of this run holds what nobody thought of
            log.warning("%s: %s", plain(str(path)), plain(str(error)))
    return copied


if __name__ == "__main__":
    run_command(main, "publish-metrics")
