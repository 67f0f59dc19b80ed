"""Pages to listen to samples, to compare them, and to look at training runs.

    megajukebox explore samples/ runs/                         # writes site/ beside samples/, prints the page to open
    megajukebox explore samples/ runs/tiny --out page --copy   # with the recordings inside, to be moved anywhere
    megajukebox explore old/samples new/samples                # two runs to compare
    python megajukebox/explore.py samples/                     # samples alone

The pages open from disk and need no server.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from megajukebox.explorer.building import build
from megajukebox.explorer.run_records import DEPTH, find_runs


def main(
    folders: Annotated[list[Path], typer.Argument(help="Folders of samples, and of runs.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the site; by default `site` beside the first.")] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the recordings into the site.")] = False,
) -> None:
    """Build static pages over folders of samples and runs; prints the path of the first page."""
    try:
        samples, runs = sorted_out([absolute(folder) for folder in folders])
        site = absolute(out) if out else absolute(folders[0]).parent / "site"
        print(build(samples, runs, site, copy_audio=copy))
    except ValueError as error:
        raise SystemExit(f"explore: {error}") from error


def absolute(folder: Path) -> Path:
    """Not resolve(): the browser follows the path that was given, so links are relative to that one."""
    return Path(os.path.abspath(folder))


def sorted_out(folders: list[Path]) -> tuple[list[Path], list[Path]]:
    """(folders of samples, folders of runs). A run may hold samples of its own."""
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{str(folder)!r} is not a folder; give what `megajukebox sample` or `train` wrote")
    runs = [folder for folder in folders if next(find_runs(folder, DEPTH), None)]
    own = [run / "samples" for folder in runs for run in find_runs(folder, DEPTH) if (run / "samples").is_dir()]
    return [*(folder for folder in folders if folder not in runs), *own], runs


if __name__ == "__main__":
    typer.run(main)
