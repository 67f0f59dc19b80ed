"""Make song shards of audio files: the first step, before anything is trained.

    megajukebox prepare demo:48 --out shards/songs --preset tiny     # 48 made-up songs, about half a minute
    megajukebox prepare ~/music --out shards/songs                   # every wav, flac, ogg, mp3 below ~/music
    megajukebox prepare songs.jsonl --out shards/songs --bits 24     # a manifest: paths, metadata, lyrics

Killed? Run the same command again: finished shards are kept, and the result is the same to the
byte. Songs that cannot be used are listed with their reasons in refused.jsonl; what was passed over
or changed in notes.jsonl. `shards/README.md` says what is in the output.

    megajukebox prepare ~/music --out shards/songs --strict --allow not_audio --allow hidden   # notes refuse their songs
"""

import os
from collections import Counter
from collections.abc import Sequence
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from megajukebox.common.command_line import run_command
from megajukebox.common.errors import UserError
from megajukebox.common.plain_text import plain
from megajukebox.common.process_pool import cores
from megajukebox.common.progress import ProgressReporter
from megajukebox.common.provenance import made_by
from megajukebox.common.untrusted_files import parse_yaml, read_given
from megajukebox.data.ingest.convert import IngestConfig
from megajukebox.data.ingest.discover import FoundSongs, find_collection
from megajukebox.data.ingest.prepare import IngestReport, prepare_songs, reasons
from megajukebox.records.ingest_notes import NOTE_KINDS, NOTES_FILE, IngestNote, NoteKind

DEMO = "demo:"
PRESETS = Path(__file__).parents[1] / "presets"
MAX_ROWS = 10  # of refusals or notes on the screen; refused.jsonl has every refusal


class Codec(str, Enum):
    flac = "flac"
    wav = "wav"


Strict = Annotated[
    bool,
    typer.Option("--strict", help="Refuse what would be noted: songs changed, files ignored."),
]
Allowed = Annotated[
    list[NoteKind] | None,
    typer.Option(help="With --strict: only note these kinds. Can be given several times."),
]


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
    follow_links: Annotated[
        bool,
        typer.Option("--follow-links", help="Read links in the folder that lead out of it."),
    ] = False,
    strict: Strict = False,
    allow: Allowed = None,
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
    processes = processes or cores()
    settings = IngestConfig(
        sample_rate=sample_rate or preset_sample_rate(preset),
        codec=Codec(audio).value,
        bits=bits,
        songs_per_shard=songs_per_shard,
        shard_megabytes=shard_megabytes,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        tags=tags,
        strict=strict,
        allow=tuple(NoteKind(kind).value for kind in allow or ()),
    )
    folder = songs or out.parent / "demo_songs"
    found = songs_of(source, folder, seed, settings.sample_rate, processes, follow_links)
    with ProgressReporter() as progress:
        progress.add("songs", total=len(found.songs))
        report = prepare_songs(
            found.songs,
            out,
            settings,
            processes=min(processes, len(found.songs)),
            lyrics_vocabulary=lyrics_vocabulary,
            made_by=made_by(),
            fresh=fresh,
            passed_over=found.notes,
            after_song=lambda count: progress.advance("songs", count),
        )
    print_report(Console(stderr=True), report, out)


def preset_sample_rate(preset: str | None) -> int:
    """`audio.sample_rate` of a preset in Hz, 44100 without a preset.

    Read as YAML: importing it needs torch.
    """
    if preset is None:
        return 44_100
    path = Path(preset) if preset.endswith((".yaml", ".yml")) else PRESETS / f"{preset}.yaml"
    if not os.path.isfile(path):  # which says no to a name that is too long
        known = ", ".join(sorted(path.stem for path in PRESETS.glob("*.yaml")))
        raise UserError(
            f"preset {preset!r} is neither a file nor one of {known}; mend it, or give --sample-rate"
        )
    try:
        values = parse_yaml(read_given(path), allow_aliases=True)
        return int(values.get("audio", {}).get("sample_rate", 44_100))
    except (AttributeError, TypeError, ValueError, OSError) as error:
        raise UserError(
            f"preset {preset!r} names no audio.sample_rate ({error}); mend it, or give"
            " --sample-rate"
        ) from error


def songs_of(
    source: str,
    folder: Path,
    seed: int,
    sample_rate: int,
    processes: int,
    follow_links: bool = False,
) -> FoundSongs:
    """The songs of `source`; those of `demo:N` are written into `folder` now, at `sample_rate` Hz, if they
    are not there.
    """
    if not source.startswith(DEMO):
        return find_collection(source, follow_links)
    count = source.removeprefix(DEMO)
    if not count.isdecimal() or int(count) < 1:
        raise UserError(f"source {source!r} names no number of songs; write for example {DEMO}48")
    # a synthesiser, which only demo:N needs
    from megajukebox.data.demo.render import write_demo_songs

    made = write_demo_songs(folder, int(count), seed, sample_rate=sample_rate, processes=processes)
    wanted = set(made)
    songs = [song for song in find_collection(folder).songs if song.path in wanted]
    return FoundSongs(songs, [])


def print_report(screen: Console, report: IngestReport, out: Path) -> None:
    """Print what was written, passed over, changed and refused."""
    index = report.index
    screen.print(
        f"{index['songs']} songs, {index['seconds'] / 60:.1f} minutes at {index['sample_rate']} Hz in "
        f"{len(index['shards'])} shards ({report.written} made, {report.kept} kept) in {out}",
        highlight=False,
    )
    print_notes(screen, report.notes, out)
    refused = [(line["song"], line["reason"], line["detail"]) for line in report.refused]
    where = f"; all of them in {out / 'refused.jsonl'}"
    print_table(screen, f"refused: {reasons(report.refused)}", refused, where)


def print_notes(screen: Console, notes: list[IngestNote], out: Path) -> None:
    """Print how often each thing was noted, with the first example of it; files that are no songs by their endings."""
    counts: Counter[tuple[NoteKind, str]] = Counter()
    examples: dict[tuple[NoteKind, str], IngestNote] = {}
    for note in notes:
        by_ending = note.kind in (NoteKind.other_format, NoteKind.not_audio)
        ending = PurePosixPath(note.source).suffix.lower() if by_ending else ""
        counts[note.kind, ending] += 1
        examples.setdefault((note.kind, ending), note)
    if not counts:
        return
    title = f"passed over or changed: {len(notes)}; all of them in {out / NOTES_FILE}"
    table = Table("count", "kind", "what", "for example", title=title, title_justify="left")
    for (kind, ending), count in counts.most_common():
        first = examples[kind, ending]
        what = f"{NOTE_KINDS[kind]} {ending}".strip()
        cells = (str(count), kind.value, what, f"{first.source}: {first.detail}")
        table.add_row(*(Text(plain(cell)) for cell in cells))
    screen.print(table)


def print_table(
    screen: Console,
    title: str,
    rows: Sequence[tuple[str, ...]],
    where: str = "",
    columns: tuple[str, ...] = ("song", "reason", "detail"),
) -> None:
    """Print a table of the first rows; nothing where there are none."""
    if not rows:
        return
    table = Table(*columns, title=title, title_justify="left")
    for row in rows[:MAX_ROWS]:
        table.add_row(*(Text(plain(cell)) for cell in row))
    screen.print(table)
    if len(rows) > MAX_ROWS:
        screen.print(f"... {len(rows) - MAX_ROWS} more{where}", highlight=False)


if __name__ == "__main__":
    run_command(main, "prepare")
