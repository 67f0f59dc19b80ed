"""Build static pages to listen to samples and to look at training runs.

    megajukebox explore samples/ runs/                         # writes site/ beside samples/, prints the page to open
    megajukebox explore samples/ runs/tiny --out page --copy   # with the recordings inside, to be moved anywhere
    python megajukebox/explore.py samples/                     # samples alone

The pages open from disk and need no server.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from megajukebox.explorer.building import build


def main(
    samples: Annotated[Path, typer.Argument(help="Folder that `megajukebox sample` wrote.")],
    runs: Annotated[list[Path] | None, typer.Argument(help="Folders of runs, or single runs.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the site; by default `site` beside SAMPLES.")] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the recordings into the site.")] = False,
) -> None:
    """Build static pages over SAMPLES and RUNS; prints the path of the first page."""
    # Not resolve(): the browser follows the path that was given, so links are relative to that one.
    folder = Path(os.path.abspath(samples))
    site = Path(os.path.abspath(out)) if out else folder.parent / "site"
    try:
        print(build(folder, [Path(os.path.abspath(run)) for run in runs or []], site, copy_audio=copy))
    except ValueError as error:
        raise SystemExit(f"explore: {error}") from error


if __name__ == "__main__":
    typer.run(main)
