"""Ask a run to save and stop after the step it is at; anybody who may write in its folder can.

megajukebox stop runs/top_prior            # leaves the file STOP: nothing starts the run again while it is there
megajukebox stop runs/top_prior --undo     # it may train again: sbatch slurm/top_prior.sh
"""

from pathlib import Path
from typing import Annotated

import typer


def main(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    undo: Annotated[bool, typer.Option("--undo", help="Take the order back.")] = False,
) -> None:
    """Save and stop, by the file STOP."""
    if not (run / "run.yaml").is_file():
        raise SystemExit(f"{run} is no run folder (it has no run.yaml); give the folder that train wrote to")
    if undo:
        (run / "STOP").unlink(missing_ok=True)
    elif (run / "DONE").exists():
        raise SystemExit(f"{run} is done; there is nothing to stop")
    else:
        (run / "STOP").touch()
        print(f"{run} will save and stop after its present step, and not start again before: stop --undo")


if __name__ == "__main__":
    typer.run(main)
