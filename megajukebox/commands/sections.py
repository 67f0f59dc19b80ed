"""Find which stretches of songs sounded before, where neither side-cars nor lyrics say so: by self-similarity of chords.

    megajukebox sections shards/songs                      # all shards, a process a core
    megajukebox sections shards/songs --part 3/64          # task 3 of an array (slurm/sections.sh)
    megajukebox sections shards/songs --threshold 0.85     # recordings of people playing: compare with songs that have marks
    megajukebox sections shards/songs --check              # how often it is right, on the songs whose sections are known

Run it before `encode`, which takes what was found into the code shards. Restartable: shards that are done with the same
threshold are kept.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from megajukebox.common.command_line import run_command
from megajukebox.common.errors import UserError
from megajukebox.common.process_pool import cores, in_order
from megajukebox.common.progress import track
from megajukebox.data.section_search import ReturnCounts, check_song, returns_of_song
from megajukebox.data.self_similarity import DEFAULT_THRESHOLD
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.records.found_returns import FoundReturns, read_returns, write_returns


def main(
    songs: Annotated[Path, typer.Argument(help="The folder of song shards.")],
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Similarity from which a stretch sounded before.")
    ] = DEFAULT_THRESHOLD,
    part: Annotated[
        str | None, typer.Option(help="i/n: only every n-th shard, from the i-th on (0-based).")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Default: one for each core.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Compare with the sections that are known; write nothing."),
    ] = False,
) -> None:
    """Find what sounds again in songs whose sections nobody wrote down. Restartable."""
    shards = ShardSet(songs)
    if shards.index["kind"] != "songs":
        raise UserError(f"{songs} holds {shards.index['kind']}; give song shards")
    numbers = range(len(shards.index["shards"]))[part_of(part)]
    workers = processes or cores()
    if check:
        print_check(shards, numbers, threshold, workers)
    else:
        search(shards, numbers, threshold, workers)


def part_of(part: str | None) -> slice:
    """The slice of the shards that `i/n` names.

    Raises:
        UserError: it is not of that form.
    """
    if part is None:
        return slice(None)
    i, _, n = part.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise UserError(f"part {part!r} is not of the form i/n with 0 <= i < n")
    return slice(int(i), None, int(n))


def search(shards: ShardSet, numbers: Sequence[int], threshold: float, processes: int) -> None:
    """Write what is found in each shard beside it; those that are done are kept."""
    missing = []
    for number in numbers:
        done = read_returns(shards.folder, shards.index["shards"][number])
        if done is None or done.threshold != threshold:
            missing.append(number)
    found_songs = 0
    rows = song_rows(shards, missing)
    work = partial(returns_of_song, shards, threshold=threshold)
    results = in_order(work, rows, min(processes, max(1, len(rows))), crashed=unreadable)
    for number in track(missing, "shards"):
        entry = shards.index["shards"][number]
        songs: dict[str, list[list[float]]] = {}
        for row in range(entry["first"], entry["first"] + entry["songs"]):
            returns = next(results)
            if isinstance(returns, str):
                print(f"{shards.key(row)}: {returns}; passed over")
            elif returns:
                songs[shards.key(row)] = returns
        write_returns(shards.folder, entry["name"], FoundReturns(entry["sha256"], threshold, songs))
        found_songs += len(songs)
    kept = len(numbers) - len(missing)
    print(
        f"{len(missing)} shards searched, {kept} kept; returns in {found_songs} of {len(rows)} songs."
        " Now encode: it takes them into the code shards"
    )


def song_rows(shards: ShardSet, numbers: Sequence[int]) -> list[int]:
    """The rows of the songs of those shards, in order."""
    rows: list[int] = []
    for number in numbers:
        entry = shards.index["shards"][number]
        rows += range(entry["first"], entry["first"] + entry["songs"])
    return rows


def unreadable(row: int) -> str:
    return "the process that read it died"


def print_check(shards: ShardSet, numbers: Sequence[int], threshold: float, processes: int) -> None:
    """How much of the sections that are known to return is found, and how much of what is found is right."""
    rows = song_rows(shards, numbers)
    total = ReturnCounts()
    songs = 0
    work = partial(check_song, shards, threshold=threshold)
    results: Any = in_order(work, rows, min(processes, max(1, len(rows))), crashed=no_counts)
    for counts in results:
        if counts is not None:
            songs += 1
            total = total.plus(counts)
    if not total.repeated:
        raise UserError(f"{shards.source}: no song has sections that return, to compare with")
    print(f"{songs} songs with sections, threshold {threshold:g}: {total.report()}")


def no_counts(row: int) -> None:
    return None


if __name__ == "__main__":
    run_command(main, "sections")
