"""Hear one run while it trains: a few seconds of its level, and of the levels below whose runs are there too.

    megajukebox preview runs/tiny/top_prior --runs runs/tiny --out runs/tiny/top_prior/samples/step-00000450

A top prior alone is heard through the VQ-VAE's own top level: the tune behind a curtain. `train` starts this by itself
every `sample_every` steps.
"""

import os
from pathlib import Path
from typing import Annotated

import torch
import typer

from megajukebox.common.command_line import run_command
from megajukebox.common.levels import PRIOR_FOLDERS
from megajukebox.common.model_files import read_facts
from megajukebox.conditioning.vocabulary import Vocabulary, read_vocabularies
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.songs.requests import SongRequest, parse_requests


def main(
    run: Annotated[Path, typer.Argument(help="The run of a prior.")],
    runs: Annotated[
        Path, typer.Option(help="The folder with the run vqvae, the levels above, and any below.")
    ],
    out: Annotated[Path, typer.Option(help="The folder for what is heard.")],
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of each.")] = 4.0,
    count: Annotated[int, typer.Option(min=1, help="How many, each for another artist.")] = 2,
    device: Annotated[str, typer.Option(help="cpu leaves the GPUs to the training.")] = "cpu",
) -> None:
    """Sample from a run that trains."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        jukebox = Jukebox(runs, device, folders=folders(run, runs))
        for song in jukebox.sample(requests(run, seconds, count)):
            song.save(out)
            print(out / f"{song.request.id}.json")
    except (ValueError, OSError) as error:
        raise SystemExit(f"listen: {error}") from error


def folders(run: Path, runs: Path) -> dict[str, Path]:
    """Where each level's prior is, from the top down: all above this run's level, and those below that are there."""
    facts, found = read_facts(run), {}
    if facts["kind"] != "prior":
        raise ValueError(f"{run} holds a {facts['kind']}; give the run of a prior")
    level = facts["level"]
    for name, folder in PRIOR_FOLDERS.items():
        place = run if name == level else runs / folder
        if not (place / "model.json").is_file():
            if level not in found:
                raise ValueError(
                    f"{place} holds no trained {name} prior, which is above this run; train it first"
                )
            break
        found[name] = place
    return found


def requests(run: Path, seconds: float, count: int) -> list[SongRequest]:
    """The same requests at every step, so that progress can be heard: the first artists that the run knows."""
    artists = read_vocabularies(run).get("artist", Vocabulary()).names[1:]
    told = [artists[n % len(artists)] if artists else None for n in range(count)]
    asked = [
        {"id": f"sample-{n}", "artist": artist, "seconds": seconds, "seed": n}
        for n, artist in enumerate(told)
    ]
    return parse_requests(asked)[0]


if __name__ == "__main__":
    run_command(main, "preview")
