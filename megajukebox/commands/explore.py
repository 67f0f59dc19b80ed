"""Pages to listen to samples, to compare them, and to look at training runs.

    megajukebox explore build samples/ runs/                        # writes site/ beside samples/, prints the page to open
    megajukebox explore build samples/ runs/tiny --out page --copy  # with the recordings inside, to be moved anywhere
    megajukebox explore build old/samples new/samples               # two runs to compare
    megajukebox explore build samples/ runs/ --follow 30            # writes the runs' pages again every 30 s, till Ctrl-C
    megajukebox explore build --corpus shards/songs                 # listen to what the model is trained on
    megajukebox explore serve old/samples new/samples               # and to vote on blind (needs the extra [serve])
    megajukebox explore serve --run runs/tiny                       # and to make new songs with: the Studio, Draw

The pages of `build` open from disk. Blind votes and the Studio need `serve`, which listens on loopback by default and
prints an address with a token: other accounts of the machine reach loopback too. On your own laptop, `--no-token`.
"""

import contextlib
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megajukebox.common.addresses import is_loopback
from megajukebox.common.command_line import group_app, renamed_options
from megajukebox.common.errors import UserError
from megajukebox.common.files import make_private_folder
from megajukebox.common.levels import COMPOSER_FOLDER, STUDENT_TABLE, VQVAE_FOLDER
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.explorer.loaders.corpus import Excerpt
from megajukebox.explorer.loaders.runs import DEPTH, find_runs
from megajukebox.explorer.site_builder import (
    CorpusSettings,
    build_site,
    write_corpus,
    write_runs,
    write_static,
)
from megajukebox.explorer.site_files import own_folder
from megajukebox.notes.events import NOTES_VOCABULARY

if TYPE_CHECKING:  # the extra [serve] need not be installed
    from megajukebox.explorer.server.api import StudioServices
    from megajukebox.explorer.server.static_files import Library

app = typer.Typer()

Folders = Annotated[
    list[Path] | None, typer.Argument(help="Folders of samples, and of runs.", show_default=False)
]
SiteFolder = Annotated[
    Path | None, typer.Option("--out", help="Folder of the site (default: site beside the first).")
]
Corpus = Annotated[
    str | None, typer.Option("--corpus", help="Song shards to list: what the model trains on.")
]
Vqvae = Annotated[
    Path | None,
    typer.Option("--vqvae", help="With --corpus: VQ-VAE run whose reconstructions to add."),
]
MaxSongs = Annotated[
    int,
    typer.Option(
        "--max-songs", min=1, help="With --corpus: songs to list, evenly over the shards."
    ),
]


@app.command()
@renamed_options({"--most-songs": "--max-songs"})
def build(
    folders: Folders = None,
    out: SiteFolder = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the recordings into the site.")
    ] = False,
    follow: Annotated[
        float | None, typer.Option(min=1, help="Rewrite the runs' pages every so many seconds.")
    ] = None,
    corpus: Corpus = None,
    vqvae: Vqvae = None,
    excerpt: Annotated[
        float, typer.Option(min=0.1, help="With --corpus: seconds from the middle of each song.")
    ] = 30.0,
    max_songs: MaxSongs = 2000,
) -> None:
    """Write static pages over folders of samples and runs, and print the path of the first page."""
    samples, runs = split_folders(folders or [], needed=not corpus)
    site = site_folder(out, folders or samples)
    songs = read_shards(corpus, vqvae, excerpt, max_songs) if corpus else None
    print(build_site(samples, runs, site, copy, songs), flush=True)
    if follow:
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(follow)
                write_runs(runs, site, copy)


@app.command()
@renamed_options({"--most-songs": "--max-songs", "--most-seconds": "--max-seconds"})
def serve(
    folders: Folders = None,
    out: SiteFolder = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Runs to generate songs with: opens the Studio; of a composer: Draw."),
    ] = None,
    max_seconds: Annotated[
        float, typer.Option(help="With --run: longest song to generate, in seconds.")
    ] = 240.0,
    idle_minutes: Annotated[
        float,
        typer.Option(min=0, help="With --run: unload the model after so long without a song."),
    ] = 10.0,
    votes: Annotated[
        Path | None,
        typer.Option(help="File of blind votes (default: votes.jsonl beside the site)."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; off loopback the token is always required.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8377,
    no_token: Annotated[
        bool,
        typer.Option(
            "--no-token",
            help="On loopback, ask for no token: whoever has an account on this machine may listen, vote, generate.",
        ),
    ] = False,
    corpus: Corpus = None,
    vqvae: Vqvae = None,
    max_songs: MaxSongs = 2000,
) -> None:
    """Serve the pages, blind votes and, with --run, the Studio, and print the address with its token."""
    try:
        from megajukebox.explorer.server import access, api, draw_api, static_files
        from megajukebox.explorer.server import serve as server
    except ImportError as error:
        raise UserError(f"{error}: serve needs `pip install 'megajukebox[serve]'`") from None
    on_loopback = is_loopback(host)
    if no_token and not on_loopback:
        raise UserError(f"--no-token: {host} can be reached from other machines; leave it out")
    samples, runs = split_folders(folders or [], needed=not corpus and not run)
    if run:
        samples, runs = add_studio_folders(absolute(run), samples, runs)
    site = site_folder(out, folders or samples)
    own_folder(site)
    write_static(site)
    shown = read_shards(corpus, vqvae, None, max_songs) if corpus else None
    songs = write_corpus(shown, site)
    recordings = static_files.ShardRecordings(shown.shards, songs) if shown else None
    library = static_files.Library(samples, site, runs, recordings)
    library.refresh()
    # A link that the user named is followed once, here; none is followed later.
    votes_file = votes.resolve() if votes else site.parent / "votes.jsonl"
    listening = server.listen(host, port)
    token = None if no_token else secrets.token_urlsafe(24)
    rules = access.AccessRules(token, listening.getsockname()[1], on_loopback)
    studio = None
    composer = draw_api.DrawServices()
    if run:
        folder = absolute(run)
        if has_vqvae(folder):
            studio = open_studio(folder, library, samples[0], max_seconds, idle_minutes)
        if has_composer(folder):
            work = make_private_folder(samples[0] / ".studio")
            composer = draw_api.DrawServices(folder, work, idle_minutes)
    app = api.application(library, votes_file, studio, rules, composer)
    try:
        server.run(app, listening, host, token)
    finally:
        composer.close()
        if studio:
            studio.close()


def absolute(folder: Path) -> Path:
    """Not resolve(): the browser follows the path that was given, so links are relative to that one."""
    return Path(os.path.abspath(folder))


def site_folder(out: Path | None, folders: list[Path]) -> Path:
    """The folder of the site: `out`, else `site` beside the first of `folders` or in the working folder."""
    if out:
        return absolute(out)
    return absolute(folders[0]).parent / "site" if folders else Path.cwd() / "site"


def split_folders(given: list[Path], needed: bool) -> tuple[list[Path], list[Path]]:
    """(folders of samples, folders of runs). The samples that a run holds count as well.

    Raises:
        UserError: one of `given` is not a folder, or there is none though one is `needed`.
    """
    if needed and not given:
        raise UserError("no folder was given; give what `megajukebox sample` or `train` wrote")
    samples = []
    runs = []
    samples_of_runs: list[Path] = []
    for folder in map(absolute, given):
        if not folder.is_dir():
            raise UserError(
                f"{str(folder)!r} is not a folder; give what `megajukebox sample` or `train` wrote"
            )
        inside = list(find_runs(folder, DEPTH))
        if inside:
            runs.append(folder)
            samples_of_runs += filter(is_own_folder, (run / "samples" for run in inside))
        else:
            samples.append(folder)
    return samples + samples_of_runs, runs


def is_own_folder(folder: Path) -> bool:
    """Whether it is a folder, and no link to one: whoever may write to a run could let it lead to anything of ours."""
    return not folder.is_symlink() and os.path.isdir(folder)


def add_studio_folders(
    run: Path, samples: list[Path], runs: list[Path]
) -> tuple[list[Path], list[Path]]:
    """(samples, runs) with those of the Studio, which writes to the first folder of samples, else to the run's.

    Raises:
        UserError: `run` holds neither a VQ-VAE nor a composer.
    """
    if not has_vqvae(run) and not has_composer(run):
        raise UserError(
            f"--run {str(run)!r} holds no vqvae/model.json; give the folder of vqvae, top_prior, ..."
            " or of a composer"
        )
    if not samples:
        (run / "samples").mkdir(exist_ok=True)
        samples = [run / "samples"]
    return samples, runs if run in runs else [*runs, run]


def has_vqvae(run: Path) -> bool:
    return (run / VQVAE_FOLDER / "model.json").is_file()


def has_composer(run: Path) -> bool:
    """Whether the page Draw can ask it."""
    return any((folder / NOTES_VOCABULARY).is_file() for folder in (run, run / COMPOSER_FOLDER))


def read_shards(
    source: str, vqvae: Path | None, excerpt_seconds: float | None, max_songs: int
) -> CorpusSettings:
    """The corpus to list; with a VQ-VAE also its reconstructions.

    Raises:
        UserError: `source` holds no songs.
    """
    shards = ShardSet(source)
    if shards.index["kind"] != "songs":
        raise UserError(
            f"--corpus {source!r} holds {shards.index['kind']}, which cannot be heard; give song shards"
        )
    excerpt = Excerpt(excerpt_seconds)
    if vqvae is None:
        return CorpusSettings(shards, excerpt, max_songs)
    from megajukebox.sampling.songs.reconstruction import reconstructor  # imports torch

    reconstruct = reconstructor(vqvae, shards.index["sample_rate"])
    return CorpusSettings(shards, excerpt, max_songs, reconstruct)


def open_studio(
    run: Path, library: "Library", songs: Path, max_seconds: float, idle_minutes: float
) -> "StudioServices":
    """The Studio over `run`, which writes into the folder `songs`."""
    from megajukebox.explorer.server.api import StudioServices
    from megajukebox.explorer.server.studio_form import StudioOptions
    from megajukebox.explorer.server.studio_jobs import Studio
    from megajukebox.explorer.server.uploads import UploadStore
    from megajukebox.sampling.songs.requests import parse_requests

    has_students = any(run.glob(f"*_student/{STUDENT_TABLE}"))
    samplers = ("autoregressive", "student") if has_students else ("autoregressive",)
    work = make_private_folder(songs / ".studio")
    return StudioServices(
        Studio(run, songs, work, library.refresh, idle_minutes),
        UploadStore(work / "uploads"),
        StudioOptions(run, samplers, max_seconds),
        check=lambda request: parse_requests([request])[1],
    )


if __name__ == "__main__":
    group_app(app, "explore", "Build pages to look at and listen to samples and runs.")()
