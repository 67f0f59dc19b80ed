"""Ask a run to save now, whatever its save_every says.

megajukebox save runs/top_prior    # leaves the file SAVE, which goes when checkpoint and exported weights are there
"""

from pathlib import Path
from typing import Annotated

import typer


def main(run: Annotated[Path, typer.Argument(help="The run folder.")]) -> None:
    """Save after the present step, by the file SAVE."""
    if not (run / "run.yaml").is_file():
        raise SystemExit(f"{run} is no run folder (it has no run.yaml); give the folder that train wrote to")
    if (run / "DONE").exists():
        raise SystemExit(f"{run} is done, and all of it is saved")
    (run / "SAVE").touch()
    print(f"{run} will save after its present step; {run / 'SAVE'} goes when it has")


if __name__ == "__main__":
    typer.run(main)
