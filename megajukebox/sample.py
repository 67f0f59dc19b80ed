"""Sample songs from a trained jukebox: a folder with the runs vqvae, top_prior, middle_upsampler, bottom_upsampler.

    megajukebox sample runs/tiny --requests songs.yaml --out samples                            # one process
    deepspeed --num_gpus 2 megajukebox/sample.py runs/tiny --requests songs.yaml --out samples  # requests dealt out
    megajukebox sample runs/tiny --artist "..." --genre "..." --lyrics words.txt --seconds 8 --seed 1 --out samples

Songs that are there already are not made again. A request that cannot be made is named, and the others go on.
"""

import json
import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from megajukebox.sampling.jukebox import Jukebox, Song
from megajukebox.sampling.reporting import ProgressFile
from megajukebox.sampling.requests import Request, parse_requests, read_requests
from megajukebox.training.launch import world


class Precision(str, Enum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def main(
    runs: Annotated[Path, typer.Argument(help="The folder of the runs.")],
    out: Annotated[Path, typer.Option(help="The folder for the songs.")] = Path("samples"),
    requests: Annotated[Path | None, typer.Option(help="A YAML or JSON list of requests.")] = None,
    artist: Annotated[str | None, typer.Option(help="Without --requests: who plays.")] = None,
    genre: Annotated[list[str] | None, typer.Option(help="Without --requests: may be given several times.")] = None,
    lyrics: Annotated[Path | None, typer.Option(help="Without --requests: a .txt or .lrc file to sing.")] = None,
    seconds: Annotated[float, typer.Option(help="Without --requests: length of the song.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Without --requests: one seed, one song.")] = 0,
    name: Annotated[str, typer.Option(help="Without --requests: name of the song's files.")] = "song",
    batch_size: Annotated[int, typer.Option(min=1, help="Songs sampled in lockstep; bounds the memory.")] = 16,
    precision: Annotated[Precision, typer.Option(help="Of the priors' weights; half of the memory in 16 bits.")] = (
        Precision.float32
    ),
    progress: Annotated[Path | None, typer.Option(help="A file to keep how far it has come in, as JSON.")] = None,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True, help="The deepspeed launcher gives it.")] = 0,
) -> None:
    """Sample songs. Exits with 1 if a request could not be made."""
    here = world()
    # One token's work is too small to share between threads: two were measured 20 times slower on a busy machine.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        if requests:
            asked, wrong = read_requests(requests)
        else:
            words = lyrics.read_text() if lyrics else ""
            said = {"artist": artist, "genres": genre or [], "lyrics": words}
            asked, wrong = parse_requests([{"id": name, **said, "seconds": seconds, "seed": seed}])
        device = f"cuda:{here.local_rank}" if torch.cuda.is_available() else "cpu"
        jukebox = Jukebox(runs, device, getattr(torch, Precision(precision).value))
    except (ValueError, OSError) as error:
        raise SystemExit(f"sample: {error}") from error
    if here.rank == 0:
        for line in wrong:
            print(f"sample: {line}")
    mine = [r for r in asked[here.rank :: here.size] if not is_made(out, r, jukebox.weights)]
    make(jukebox, mine, out, batch_size, here.rank == 0, progress if here.rank == 0 else None)
    if wrong:
        raise SystemExit(1)


def is_made(out: Path, request: Request, weights: dict[str, str]) -> bool:
    """Whether the song is there, of this very request and these weights."""
    path = out / f"{request.id}.json"
    if not path.exists():
        return False
    record = json.loads(path.read_text())
    return record["request"] == request.model_dump(mode="json") and record["weights"] == weights


def make(
    jukebox: Jukebox, requests: list[Request], out: Path, batch_size: int, show: bool, progress: Path | None = None
) -> None:
    """Sample and save `requests`, with a bar a level."""
    if not requests:
        return
    count = TextColumn("{task.completed:.0f}/{task.total:.0f} codes")
    columns = (TextColumn("{task.description:>6}"), BarColumn(), count, TimeRemainingColumn())
    with Progress(*columns, disable=not show) as bar:
        totals = {level: sum(jukebox.codes_of(r, level) for r in requests) for level in jukebox.levels}
        rows = {level: bar.add_task(level, total=total) for level, total in totals.items()}
        report = ProgressFile(progress, totals)

        def advance(level: str, count: int) -> None:
            bar.advance(rows[level], count)
            report.advance(level, count)

        songs = jukebox.sample(requests, batch_size, advance)
    for song in songs:
        song.save(out)
        tell(song, out)


def tell(song: Song, out: Path) -> None:
    notes = "".join(f"\n  note: {note}" for note in song.notes)
    print(f"{out / song.request.id}.wav  {song.record()['seconds']:.1f} s{notes}")


if __name__ == "__main__":
    typer.run(main)
