"""Sample a run while it trains: a few seconds of its level, and of the levels below whose runs are there too.

    megajukebox preview runs/tiny/top_prior --runs runs/tiny --out runs/tiny/top_prior/samples/step-00000450

A top prior alone is decoded by the VQ-VAE's own top level: the tune behind a curtain. `train` starts this by itself
every `previews.every` steps.
"""

import os
from pathlib import Path
from typing import Annotated

import torch
import typer

from megajukebox.common.command_line import run_command
from megajukebox.common.errors import UserError
from megajukebox.common.levels import PRIOR_FOLDERS
from megajukebox.common.model_files import FACTS, read_facts
from megajukebox.conditioning.vocabulary import Vocabulary, read_vocabularies
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.songs.requests import SongRequest, parse_requests


def main(
    run: Annotated[Path, typer.Argument(help="Run of a prior.")],
    runs: Annotated[
        Path, typer.Option(help="Folder with the run vqvae, the levels above, and any below.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the samples.")],
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of each (default: 4).")] = 4.0,
    count: Annotated[
        int, typer.Option(min=1, help="Number of samples, each of another artist (default: 2).")
    ] = 2,
    device: Annotated[str, typer.Option(help="cpu leaves the GPUs to training.")] = "cpu",
) -> None:
    """Sample from a run that trains."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    jukebox = Jukebox(runs, device, folders=level_folders(run, runs))
    for song in jukebox.sample(preview_requests(run, seconds, count)):
        print(song.save(out))


def level_folders(run: Path, runs: Path) -> dict[str, Path]:
    """The run of each level's prior, from the top down: all above this run's level, and those below that are there.

    Raises:
        UserError: `run` holds no prior, or a level above it is not trained.
    """
    facts = read_facts(run)
    if facts["kind"] != "prior":
        raise UserError(f"{run} holds a {facts['kind']}; give the run of a prior")
    level = facts["level"]
    folders: dict[str, Path] = {}
    for name, default in PRIOR_FOLDERS.items():
        folder = run if name == level else runs / default
        if not (folder / FACTS).is_file():
            if level in folders:
                break
            raise UserError(
                f"{folder} holds no trained {name} prior, which is above this run; train it first"
            )
        folders[name] = folder
    return folders


def preview_requests(run: Path, seconds: float, count: int) -> list[SongRequest]:
    """The same requests at every step, so that progress can be heard: the first artists that the run knows."""
    artists = read_vocabularies(run).get("artist", Vocabulary()).names[1:]
    requests = []
    for n in range(count):
        artist = artists[n % len(artists)] if artists else None
        requests.append({"id": f"sample-{n}", "artist": artist, "seconds": seconds, "seed": n})
    return parse_requests(requests)[0]


if __name__ == "__main__":
    run_command(main, "preview")
