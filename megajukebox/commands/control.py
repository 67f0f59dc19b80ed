"""Ask a run for a checkpoint, or to save and stop; anybody who may write in its folder can.

megajukebox save runs/top_prior            # writes the file SAVE, which goes when the checkpoint is written
megajukebox stop runs/top_prior            # writes the file STOP: nothing restarts the run while it exists
megajukebox stop runs/top_prior --undo     # removes it; then restart the run: sbatch slurm/top_prior.sh
"""

from pathlib import Path
from typing import Annotated

import typer

from megajukebox.common.errors import UserError
from megajukebox.common.files import open_append


def require_run_folder(run: Path) -> None:
    if not (run / "run.yaml").is_file():
        raise UserError(
            f"{run} is not a run folder (it has no run.yaml); give the folder that train wrote to"
        )


def write_flag(run: Path, name: str) -> None:
    """Make the empty file `name` in the run folder; a link of that name is not followed."""
    try:
        open_append(run / name).close()
    except OSError as error:
        raise UserError(f"{run / name} cannot be written ({error.strerror}); remove it") from None


def save(run: Annotated[Path, typer.Argument(help="The run folder.")]) -> None:
    """Ask a run for a checkpoint after its current step, by the file SAVE."""
    require_run_folder(run)
    if (run / "DONE").exists():
        raise UserError(f"{run} is done, and all of it is saved")
    write_flag(run, "SAVE")
    print(f"{run} will save after its current step; then {run / 'SAVE'} is removed")


def stop(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    undo: Annotated[
        bool, typer.Option("--undo", help="Remove the file STOP, so that the run may start again.")
    ] = False,
) -> None:
    """Ask a run to save and stop after its current step, by the file STOP."""
    require_run_folder(run)
    if undo:
        (run / "STOP").unlink(missing_ok=True)
        return
    if (run / "DONE").exists():
        raise UserError(f"{run} is done; there is nothing to stop")
    write_flag(run, "STOP")
    print(f"{run} will save and stop after its current step; stop --undo lets it start again")
