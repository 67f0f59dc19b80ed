"""Pages to listen to samples, to compare them, and to look at training runs.

    megajukebox explore samples/ runs/                         # writes site/ beside samples/, prints the page to open
    megajukebox explore samples/ runs/tiny --out page --copy   # with the recordings inside, to be moved anywhere
    megajukebox explore old/samples new/samples                # two runs to compare
    megajukebox explore --serve old/samples new/samples        # and to vote on blind (needs the extra [serve])
    megajukebox explore --serve --run runs/tiny                # and to make new songs with: the Studio
    megajukebox explore samples/ runs/ --follow 30             # writes the runs' pages again every 30 s, till Ctrl-C
    megajukebox explore --corpus shards/songs                  # listen to what the model is trained on
    python megajukebox/commands/explore.py samples/                     # samples alone

The pages open from disk and need no server; voting and the Studio need the one of --serve, on loopback unless told.
"""

import contextlib
import os
import secrets
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from megajukebox.common.command_line import run_command
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.explorer.loaders.corpus import Excerpt
from megajukebox.explorer.loaders.runs import DEPTH, find_runs
from megajukebox.explorer.site_builder import (
    CorpusSettings,
    build,
    write_corpus,
    write_runs,
    write_static,
)


def main(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of samples, and of runs.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the site; by default `site` beside the first.")
    ] = None,
    follow: Annotated[
        float | None, typer.Option(min=1, help="Write runs' pages again every so many seconds.")
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the recordings into the site.")
    ] = False,
    corpus: Annotated[
        str | None, typer.Option(help="Shards to listen to as well: what the model is trained on.")
    ] = (None),
    vqvae: Annotated[
        Path | None, typer.Option(help="With --corpus: also what this VQ-VAE keeps of it.")
    ] = None,
    excerpt: Annotated[
        float, typer.Option(min=0.1, help="Seconds of each song; with --serve songs are whole.")
    ] = 30.0,
    most_songs: Annotated[
        int, typer.Option(min=1, help="Songs shown at most, evenly over the shards.")
    ] = 2000,
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Serve the pages: blind votes, and with --run the Studio."),
    ] = (False),
    run: Annotated[
        Path | None, typer.Option(help="With --serve: the runs that the Studio makes songs with.")
    ] = None,
    votes: Annotated[
        Path | None,
        typer.Option(help="With --serve: file of votes; `votes.jsonl` beside the site."),
    ] = (None),
    host: Annotated[
        str, typer.Option(help="With --serve: address to listen on; off loopback a token is asked.")
    ] = ("127.0.0.1"),
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="With --serve: port; 0 takes a free one.")
    ] = 8377,
    most_seconds: Annotated[
        float, typer.Option(help="With --run: longest song that the Studio makes.")
    ] = 240.0,
    idle_minutes: Annotated[
        float,
        typer.Option(min=0, help="With --run: without a song for so long, the model is let go."),
    ] = 10.0,
) -> None:
    """Build static pages over folders of samples and runs; prints the path of the first page, or its address."""
    try:
        given = [absolute(folder) for folder in folders or []]
        samples, runs = sorted_out(given)
        if run:
            samples, runs = with_studio(absolute(run), samples, runs)
        if not samples and not runs and not corpus:
            raise ValueError(
                "no folder was given; give what `megajukebox sample` or `train` wrote, or --run"
            )
        site = absolute(out) if out else [*given, *samples, Path.cwd() / "site"][0].parent / "site"
        songs = (
            read_shards(corpus, vqvae, None if serve else excerpt, most_songs) if corpus else None
        )
        if not serve:
            print(build(samples, runs, site, copy, songs), flush=True)
            if follow:
                keep_writing(runs, site, copy, follow)
        else:
            serve_pages(
                samples,
                runs,
                site,
                songs,
                run and absolute(run),
                votes,
                host,
                port,
                most_seconds,
                idle_minutes,
            )
    except ValueError as error:
        raise SystemExit(f"explore: {error}") from error


def keep_writing(runs: list[Path], site: Path, copy: bool, every: float) -> None:
    """The runs' pages again and again, until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(every)
            write_runs(runs, site, copy)


def absolute(folder: Path) -> Path:
    """Not resolve(): the browser follows the path that was given, so links are relative to that one."""
    return Path(os.path.abspath(folder))


def sorted_out(folders: list[Path]) -> tuple[list[Path], list[Path]]:
    """(folders of samples, folders of runs). A run may hold samples of its own."""
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(
                f"{str(folder)!r} is not a folder; give what `megajukebox sample` or `train` wrote"
            )
    runs = [folder for folder in folders if next(find_runs(folder, DEPTH), None)]
    own = [
        run / "samples"
        for folder in runs
        for run in find_runs(folder, DEPTH)
        if (run / "samples").is_dir()
    ]
    return [*(folder for folder in folders if folder not in runs), *own], runs


def with_studio(run: Path, samples: list[Path], runs: list[Path]) -> tuple[list[Path], list[Path]]:
    """The Studio's songs go to the first folder of samples; without one, to `samples` in the run."""
    if not (run / "vqvae" / "model.json").is_file():
        raise ValueError(
            f"--run {str(run)!r} holds no vqvae/model.json; give the folder of vqvae, top_prior, ..."
        )
    if not samples:
        (run / "samples").mkdir(exist_ok=True)
        samples = [run / "samples"]
    return samples, runs if run in runs else [*runs, run]


def read_shards(
    source: str, vqvae: Path | None, excerpt: float | None, most: int
) -> CorpusSettings:
    """The corpus to show; with a VQ-VAE also what its levels keep of it."""
    shards = ShardSet(source)
    if shards.index["kind"] != "songs":
        raise ValueError(
            f"--corpus {source!r} holds {shards.index['kind']}, which cannot be heard; give song shards"
        )
    if vqvae is None:
        return CorpusSettings(shards, Excerpt(excerpt), most)
    from megajukebox.sampling.songs.reconstruction import (
        reconstructor,  # torch: only for those who ask
    )

    return CorpusSettings(
        shards, Excerpt(excerpt), most, reconstructor(vqvae, shards.index["sample_rate"])
    )


def serve_pages(
    samples: list[Path], runs: list[Path], site: Path, corpus: CorpusSettings | None, run: Path | None, votes: Path | None,
    host: str, port: int, most_seconds: float, idle_minutes: float,
) -> None:  # fmt: skip
    """Build the pages and serve them until somebody presses Ctrl-C."""
    try:
        from megajukebox.explorer.server import api, serve
    except ImportError as error:
        raise ValueError(f"{error}: --serve needs `pip install 'megajukebox[serve]'`") from None
    write_static(site)
    songs = write_corpus(corpus, site)
    library = api.Library(
        samples, site, runs, api.Recordings(corpus.shards, songs) if corpus else None
    )
    library.refresh()
    workshop = studio(run, library, samples[0], most_seconds, idle_minutes) if run else None
    nonce = secrets.token_urlsafe(16)
    kept = absolute(votes) if votes else site.parent / "votes.jsonl"
    token = None if serve.is_loopback(host) else secrets.token_urlsafe(24)
    try:
        serve.run(api.application(library, kept, workshop, token, nonce), host, port, token)
    finally:
        if workshop:
            workshop.studio.close()


def studio(run: Path, library: Any, songs: Path, most_seconds: float, idle_minutes: float) -> Any:
    """The Studio over `run`: what it offers is what this version's requests know."""
    from megajukebox.explorer.server.api import Workshop
    from megajukebox.explorer.server.studio_form import Offer
    from megajukebox.explorer.server.studio_jobs import Studio
    from megajukebox.explorer.server.uploads import Uploads
    from megajukebox.sampling.songs.requests import SongRequest, parse_requests

    # Students are made by `distill`; a version or a run without them has the plain sampler alone.
    students = find_spec("megajukebox.sampling.students.student_runs") and any(
        run.glob("*_student/student.json")
    )
    samplers = ("autoregressive", "student") if students else ("autoregressive",)
    offer = Offer(run, samplers, "prompt" in SongRequest.model_fields, most_seconds)
    work = songs / ".studio"
    return Workshop(
        Studio(run, songs, work, library.refresh, idle_minutes),
        Uploads(work / "uploads"),
        offer,
        lambda request: parse_requests([request])[1],
    )


if __name__ == "__main__":
    run_command(main, "explore")
