"""Look at shard sets: is each whole, what is in it.

    megajukebox shards check shards/songs             # every checksum and row; exit status 1 if something is wrong
    megajukebox shards check https://host/songs       # the same of a set behind a URL, shard by shard
    megajukebox shards stats shards/songs --picture songs.png     # hours, artists, languages, lengths
    megajukebox shards stats shards/a:3 shards/b:1    # several, and whether they can be trained on together
    megajukebox shards ls shards/codes                # one line a song; --shard 3 for those of one tar

Exit status: 0 all is well, 1 damage was found, 2 there is no set to look at. Nothing is ever
unpacked.
"""

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from megajukebox.common.command_line import run_command
from megajukebox.common.errors import UserError
from megajukebox.common.files import make_folder
from megajukebox.common.plain_text import plain
from megajukebox.common.process_pool import cores, in_order
from megajukebox.common.progress import ProgressReporter
from megajukebox.data.shards.blended_sets import ShardBlend, open_data
from megajukebox.data.shards.remote import DEFAULT_CACHE, RemoteConfig
from megajukebox.data.shards.remote_options import (
    RedirectHostOption,
    TokenFileOption,
    remote_config,
)
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.shards.verify import check_shard

MAX_NAMES = 10  # of a vocabulary on the screen


class What(str, Enum):
    check = "check"
    stats = "stats"
    ls = "ls"


def main(
    what: Annotated[
        What, typer.Argument(help="check: is it whole; stats: what is in it; ls: its songs.")
    ],
    shards: Annotated[
        list[str],
        typer.Argument(help="Folders or URLs of shard sets, as `train --data` takes them."),
    ],
    picture: Annotated[Path | None, typer.Option(help="stats: draw it as this PNG.")] = None,
    shard: Annotated[
        int | None, typer.Option(min=0, help="check, ls: only the shard of this number.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="check: default one for each core.")
    ] = None,
    cache: Annotated[
        Path, typer.Option(help="Where shards behind a URL are kept.")
    ] = DEFAULT_CACHE,
    allow_pipe: Annotated[
        bool, typer.Option("--allow-pipe", help="Allow URLs that run commands.")
    ] = False,
    data_token_file: TokenFileOption = None,
    redirect_host: RedirectHostOption = None,
) -> None:
    """Look at shard sets."""
    try:
        remote = remote_config(
            shards, data_token_file, redirect_host, cache=cache, allow_pipe=allow_pipe
        )
        sets = open_sets(shards, remote)
        if picture and len(sets) > 1:
            raise UserError("--picture draws one set; give one")
        for opened in sets:
            count = len(opened.index["shards"])
            if shard is not None and shard >= count:
                raise UserError(
                    f"shard {shard} does not exist in {opened.source}; the last one is {count - 1}"
                )
    except UserError as error:
        Console(stderr=True).print(f"shards: {plain(str(error))}", markup=False, highlight=False)
        raise typer.Exit(2) from None
    findings = 0
    for opened in sets:
        numbers = list(range(len(opened.index["shards"]))) if shard is None else [shard]
        if len(sets) > 1 and What(what) is not What.stats:  # which has it as its title
            print(plain(opened.source))
        if What(what) is What.check:
            findings += check(opened, numbers, processes or cores())
        elif What(what) is What.stats:
            stats(opened, picture)
        else:
            ls(opened, numbers)
    if findings:
        raise typer.Exit(1)


def open_sets(addresses: Sequence[str], remote: RemoteConfig) -> list[ShardSet]:
    """The sets, in their order; several are checked for whether they can be trained on together.

    Raises:
        UserError: one cannot be opened, or they cannot be blended.
    """
    if len(addresses) == 1:
        return [ShardSet(addresses[0], remote)]
    blend = open_data(addresses, remote)
    assert isinstance(blend, ShardBlend)
    return list(blend.given)


def check(shards: ShardSet, numbers: list[int], processes: int) -> int:
    """Compare every shard with the index; prints what is wrong and returns how many findings
    there were.
    """
    screen = Console()
    count = 0
    songs = 0
    work = [(shards, number) for number in numbers]
    checked = in_order(check_shard, work, min(processes, len(work)), crashed)
    with ProgressReporter() as progress:
        progress.add("shards", total=len(work))
        for number, findings in zip(numbers, checked):
            progress.advance("shards")
            entry = shards.index["shards"][number]
            songs += entry["songs"]
            count += len(findings)
            for finding in findings:
                line = plain(f"{entry['name']}: {finding}")
                screen.print(line, markup=False, highlight=False, soft_wrap=True)
    verdict = f"{count} findings" if count else "all is well"
    screen.print(f"{len(numbers)} shards, {songs} songs: {verdict}", markup=False, highlight=False)
    return count


def crashed(work: tuple[ShardSet, int]) -> list[str]:
    return ["the process that read it died"]


def stats(shards: ShardSet, picture: Path | None) -> None:
    """Hours, artists, languages and lengths, as tables and, if asked, as a picture."""
    screen = Console()
    index = shards.index
    seconds = np.asarray(shards.songs["frames"]) / index["sample_rate"]
    table = Table(
        "", "", title=f"{shards.source} ({index['kind']})", title_justify="left", show_header=False
    )
    for name, value in facts(shards, seconds).items():
        table.add_row(name, plain(value))
    screen.print(table)
    for name, counts in index["vocabulary"].items():
        if not counts:
            continue
        table = Table(name, "songs", title=f"{len(counts)} in {name}", title_justify="left")
        for value, count in sorted(counts.items(), key=lambda item: -item[1])[:MAX_NAMES]:
            table.add_row(Text(plain(value)), str(count))
        screen.print(table)
    if picture:
        # matplotlib, which only --picture needs
        from megajukebox.data.shards.plots import draw

        make_folder(picture.parent)
        title = f"{len(shards)} songs, {seconds.sum() / 3600:.1f} hours"
        draw(picture, seconds, index["vocabulary"], title)
        screen.print(f"drawn: {picture}", markup=False, highlight=False)


def facts(shards: ShardSet, seconds: np.ndarray) -> dict[str, str]:
    index = shards.index
    sizes = sum(shard["bytes"] for shard in index["shards"])
    shortest, median, longest = np.percentile(seconds, [0, 50, 100])
    with_lyrics = 0
    if "lyrics" in shards.members:
        with_lyrics = int((shards.songs["lyrics_bytes"] > 0).sum())
    return {
        "songs": f"{len(shards)}",
        "hours": f"{seconds.sum() / 3600:.2f} at {index['sample_rate']} Hz",
        "shards": f"{len(index['shards'])}, {sizes / 1e9:.3f} GB",
        "lengths": f"{shortest:.1f} to {longest:.1f} s, half of them under {median:.1f} s",
        "artists": f"{len(index['vocabulary'].get('artist', {}))}",
        "languages": f"{len(index['vocabulary'].get('language', {}))}",
        "with lyrics": f"{with_lyrics}",
        "fingerprint": shards.fingerprint,
        "made by": str(index.get("made_by")),
    }


def ls(shards: ShardSet, numbers: list[int]) -> None:
    """One line a song: shard, key, seconds, and the bytes of each member."""
    wanted = set(numbers)
    print("shard\tkey\tseconds\t" + "\t".join(shards.members))
    for song in range(len(shards)):
        row = shards.songs[song]
        if int(row["shard"]) in wanted:
            name = shards.index["shards"][int(row["shard"])]["name"]
            seconds = row["frames"] / shards.index["sample_rate"]
            sizes = "\t".join(str(row[f"{member}_bytes"]) for member in shards.members)
            key = plain(shards.key(song))
            print(f"{plain(str(name))}\t{key}\t{seconds:.2f}\t{sizes}")


if __name__ == "__main__":
    run_command(main, "shards")
