"""Encode and decode real songs, to hear what the codes of each level keep of them.

    megajukebox reconstruct runs/tiny --data shards/songs --count 8 --out samples     # songs held out of training
    megajukebox reconstruct runs/tiny --data shards/songs --song artist/title         # songs by key

Each becomes a sample with an audio file a level beside the original, and its codes, so that lower levels can be sampled
from true upper ones: `megajukebox sample runs/tiny --upsample samples/original-....json`.
"""

from pathlib import Path
from typing import Annotated

import typer

from megajukebox.common.command_line import run_command
from megajukebox.common.device import choose_device
from megajukebox.common.world import world
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.sampling import options
from megajukebox.sampling.songs.reconstruction import reconstructions, select_rows

DEFAULT_SONGS = 8
DEFAULT_SECONDS = 10.0


def main(
    runs: Annotated[Path, typer.Argument(help="Folder of the runs.")],
    data: Annotated[str, typer.Option(help="Song shards.")],
    out: Annotated[Path, typer.Option(help="Folder for the songs.")] = Path("samples"),
    count: Annotated[
        int, typer.Option(min=1, help="Number of held-out songs (default: 8).")
    ] = DEFAULT_SONGS,
    song: Annotated[
        list[str] | None, typer.Option(help="Key of a song instead; may be repeated.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Seconds of each song (default: 10).")
    ] = DEFAULT_SECONDS,
    refiner: options.Refiner = None,
    refine: options.Refine = True,
) -> None:
    """Encode and decode real songs with the VQ-VAE, level by level."""
    here = world()
    device = str(choose_device(here.local_rank))
    shards = ShardSet(data)
    rows = select_rows(shards, runs / "vqvae", song or [], count)
    own_rows = rows[here.rank :: here.size]
    for reconstruction in reconstructions(
        runs, shards, own_rows, seconds, device, options.refiner_runs(refiner, refine)
    ):
        print(reconstruction.save(out), flush=True)


if __name__ == "__main__":
    run_command(main, "reconstruct")
