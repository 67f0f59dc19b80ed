"""Make song shards of audio files: the first step, before anything is trained.

    megajukebox prepare demo:48 --out shards/songs --preset tiny     # 48 made-up songs, about half a minute
    megajukebox prepare ~/music --out shards/songs                   # every wav, flac, ogg, mp3 below ~/music
    megajukebox prepare songs.jsonl --out shards/songs --bits 24     # a manifest: paths, metadata, lyrics

Killed? Run the same command again: finished shards are kept, and the result is the same to the byte. Songs that cannot
be used are listed with their reasons in refused.jsonl. `shards/README.md` says what is in the output.
"""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from megajukebox.common.command_line import run_command
from megajukebox.common.process_pool import cores
from megajukebox.common.provenance import made_by
from megajukebox.data.ingest.convert import IngestConfig
from megajukebox.data.ingest.discover import SourceSong, find_songs
from megajukebox.data.ingest.prepare import IngestReport, prepare_songs, reasons

DEMO = "demo:"
PRESETS = Path(__file__).parents[1] / "presets"
SHOWN = 10  # lines of refusals or notes on the screen; refused.jsonl has every refusal


class Codec(str, Enum):
    flac = "flac"
    wav = "wav"


def main(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of songs, a .jsonl or .csv manifest, or demo:48 for 48 made-up songs."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder for the shards.")],
    preset: Annotated[
        str | None, typer.Option(help="Take the sample rate of this preset or YAML file.")
    ] = None,
    sample_rate: Annotated[
        int | None, typer.Option(help="Hz. Default: the preset's, else 44100.")
    ] = None,
    audio: Annotated[
        Codec, typer.Option(help="How audio is stored: flac, or wav (32-bit float).")
    ] = Codec.flac,
    bits: Annotated[int, typer.Option(help="Of the flac: 16 or 24.")] = 16,
    songs_per_shard: Annotated[int, typer.Option(help="At most this many songs in a shard.")] = 64,
    shard_megabytes: Annotated[
        int, typer.Option(help="At most about this many MB in a shard.")
    ] = 1000,
    min_seconds: Annotated[float, typer.Option(help="Shorter songs are refused.")] = 1.0,
    max_seconds: Annotated[float, typer.Option(help="Longer songs are refused.")] = 3600.0,
    tags: Annotated[
        bool, typer.Option(help="Where nothing else says so: artist, title ... by the files' tags.")
    ] = True,
    lyrics_vocabulary: Annotated[
        int, typer.Option(help="Pieces of the lyrics tokenizer; 0 trains none.")
    ] = 512,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Default: one for each core.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Throw away what an earlier run left in --out.")
    ] = False,
    songs: Annotated[
        Path | None,
        typer.Option(help="Where demo:N puts its songs. Default: demo_songs beside --out."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the songs of demo:N.")] = 0,
) -> None:
    """Make song shards of audio files. Restartable; the same input gives the same bytes."""
    screen = Console(stderr=True)
    processes = processes or cores()
    try:
        rate = sample_rate or preset_sample_rate(preset)
        lengths = (min_seconds, max_seconds)
        settings = IngestConfig(
            rate, Codec(audio).value, bits, songs_per_shard, shard_megabytes, *lengths, tags
        )
        found = songs_of(source, songs or out.parent / "demo_songs", seed, processes)
        report = with_progress(screen, found, out, settings, processes, lyrics_vocabulary, fresh)
    except ValueError as error:
        raise SystemExit(f"prepare: {error}") from error
    tell(screen, report, found, out)


def preset_sample_rate(preset: str | None) -> int:
    """`audio.sample_rate` of a preset in Hz; 44100 where nothing is said. The preset is not imported: torch is slow."""
    if preset is None:
        return 44_100
    path = Path(preset) if preset.endswith((".yaml", ".yml")) else PRESETS / f"{preset}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in PRESETS.glob("*.yaml")))
        raise ValueError(
            f"preset {preset!r} is neither a file nor one of {known}; mend it, or give --sample-rate"
        )
    values = yaml.safe_load(path.read_text())
    try:
        return int(values.get("audio", {}).get("sample_rate", 44_100))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"preset {preset!r} names no audio.sample_rate; mend it, or give --sample-rate"
        ) from error


def songs_of(source: str, folder: Path, seed: int, processes: int) -> list[SourceSong]:
    """The songs of `source`; those of `demo:N` are written into `folder` now, if they are not there."""
    if not source.startswith(DEMO):
        return find_songs(source)
    count = source.removeprefix(DEMO)
    if not count.isdecimal() or int(count) < 1:
        raise ValueError(f"source {source!r} names no number of songs; write for example {DEMO}48")
    from megajukebox.data.demo.render import (
        write_demo_songs,  # a synthesiser: only those who ask for it load it
    )

    wanted = set(write_demo_songs(folder, int(count), seed, processes=processes))
    return [song for song in find_songs(folder) if song.path in wanted]


def with_progress(
    screen: Console,
    songs: list[SourceSong],
    out: Path,
    settings: IngestConfig,
    processes: int,
    vocabulary: int,
    fresh: bool,
) -> IngestReport:
    """Prepare `songs` under a progress bar."""
    columns = (
        TextColumn("songs"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen) as progress:
        bar = progress.add_task("songs", total=len(songs))
        return prepare_songs(
            songs,
            out,
            settings,
            processes=min(processes, len(songs)),
            lyrics_vocabulary=vocabulary,
            made_by=made_by(),
            fresh=fresh,
            after_song=lambda count: progress.advance(bar, count),
        )


def tell(screen: Console, report: IngestReport, songs: list[SourceSong], out: Path) -> None:
    """What came of it, on the screen."""
    index = report.index
    screen.print(
        f"{index['songs']} songs, {index['seconds'] / 60:.1f} minutes at {index['sample_rate']} Hz in "
        f"{len(index['shards'])} shards ({report.made} made, {report.kept} kept) in {out}",
        highlight=False,
    )
    show(
        screen,
        "ignored in side-cars",
        [(song.name, "", note) for song in songs for note in song.notes],
    )
    refused = [(line["song"], line["reason"], line["detail"]) for line in report.refused]
    show(
        screen,
        f"refused: {reasons(report.refused)}",
        refused,
        f"; all of them in {out / 'refused.jsonl'}",
    )


def show(screen: Console, title: str, rows: list[tuple[str, str, str]], where: str = "") -> None:
    """A table of the first rows; nothing where there are none."""
    if not rows:
        return
    table = Table("song", "reason", "detail", title=f"{title}", title_justify="left")
    for row in rows[:SHOWN]:
        table.add_row(*(escape(cell) for cell in row))
    screen.print(table)
    if len(rows) > SHOWN:
        screen.print(f"... {len(rows) - SHOWN} more{where}", highlight=False)


if __name__ == "__main__":
    run_command(main, "prepare")
