"""Ask a run for a checkpoint, or to save and stop; anybody who may write in its folder can.

megajukebox save runs/top_prior            # leaves the file SAVE, which goes when the checkpoint is there
megajukebox stop runs/top_prior            # leaves the file STOP: nothing starts the run again while it is there
megajukebox stop runs/top_prior --undo     # it may train again: sbatch slurm/top_prior.sh
"""

from pathlib import Path
from typing import Annotated

import typer


def require_run_folder(run: Path) -> None:
    if not (run / "run.yaml").is_file():
        raise SystemExit(
            f"{run} is no run folder (it has no run.yaml); give the folder that train wrote to"
        )


def save(run: Annotated[Path, typer.Argument(help="The run folder.")]) -> None:
    """Save after the present step, by the file SAVE."""
    require_run_folder(run)
    if (run / "DONE").exists():
        raise SystemExit(f"{run} is done, and all of it is saved")
    (run / "SAVE").touch()
    print(f"{run} will save after its present step; {run / 'SAVE'} goes when it has")


def stop(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    undo: Annotated[bool, typer.Option("--undo", help="Take the order back.")] = False,
) -> None:
    """Save and stop, by the file STOP."""
    require_run_folder(run)
    if undo:
        (run / "STOP").unlink(missing_ok=True)
    elif (run / "DONE").exists():
        raise SystemExit(f"{run} is done; there is nothing to stop")
    else:
        (run / "STOP").touch()
        print(
            f"{run} will save and stop after its present step, and not start again before: stop --undo"
        )
