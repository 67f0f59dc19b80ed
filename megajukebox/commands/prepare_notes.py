"""Make note shards of written music: what the composer is trained on.

    megajukebox prepare-notes ~/midi --out shards/notes                      # every .mid, .kar, .abc, .musicxml, .mxl, .krn
    megajukebox prepare-notes music21:bach --out shards/notes                # chorales that music21 brings along
    megajukebox prepare-notes music21:bach,palestrina --out shards/notes     # several of its collections
    megajukebox prepare-notes ~/tunes --out shards/notes --genre reel --licence CC0-1.0

`<name>.json` beside a file names its artist (who composed it), title, genres (its styles), year, licence. Killed? Run the
same command again: finished shards are kept. Pieces that cannot be used are listed in refused.jsonl with their reasons,
what was repaired or passed over in notes.jsonl. Two pieces with the same notes are one.
"""

from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console

from megajukebox.commands.prepare import print_table
from megajukebox.common.command_line import run_command
from megajukebox.common.errors import UserError
from megajukebox.common.plain_text import plain
from megajukebox.common.process_pool import cores
from megajukebox.common.progress import ProgressReporter
from megajukebox.common.provenance import made_by
from megajukebox.common.untrusted_files import read_given
from megajukebox.data.ingest.note_pieces import (
    NoteFile,
    NotesIngestConfig,
    NotesReport,
    find_note_files,
    prepare_notes,
)
from megajukebox.notes.readers import EXTRA
from megajukebox.records.ingest_notes import NOTE_KINDS, NOTES_FILE, IngestNote

CORPUS = "music21:"
LICENCE_LINES = 6  # of the corpus' licence, on the screen


class Collection(NamedTuple):
    """A folder of music21's corpus."""

    folder: str
    artist: str | None
    genres: tuple[str, ...]
    licence: str = "as music21's corpus/license.txt says; some encodings are not for commercial use"


FREELY_GIVEN = "transcribed and given freely; as music21's corpus/license.txt says"
COLLECTIONS = {
    "bach": Collection("bach", "Johann Sebastian Bach", ("chorale",)),
    "palestrina": Collection("palestrina", "Giovanni Pierluigi da Palestrina", ("mass",)),
    "monteverdi": Collection("monteverdi", "Claudio Monteverdi", ("madrigal",)),
    "trecento": Collection("trecento", None, ("trecento",)),
    "haydn": Collection("haydn", "Joseph Haydn", ("string quartet",)),
    "mozart": Collection("mozart", "Wolfgang Amadeus Mozart", ("string quartet",)),
    "beethoven": Collection("beethoven", "Ludwig van Beethoven", ("string quartet",)),
    "oneills1850": Collection("oneills1850", None, ("irish tune",), FREELY_GIVEN),
    "ryans": Collection("ryansMammoth", None, ("fiddle tune",), FREELY_GIVEN),
    "airds": Collection("airdsAirs", None, ("scottish tune",), FREELY_GIVEN),
}


def main(
    source: Annotated[
        str,
        typer.Argument(help="A folder, or music21:NAME[,NAME] for collections of music21."),
    ],
    out: Annotated[Path, typer.Option(help="The folder for the shards.")],
    artist: Annotated[
        str | None, typer.Option(help="Who composed it, where no side-car says so.")
    ] = None,
    genre: Annotated[
        list[str] | None, typer.Option(help="Its styles, where no side-car says so.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Of all pieces whose side-car says nothing.")
    ] = None,
    files_per_shard: Annotated[int, typer.Option(min=1, help="Files in a shard.")] = 256,
    pedal: Annotated[bool, typer.Option(help="The sustain pedal lengthens notes.")] = True,
    min_notes: Annotated[int, typer.Option(min=1, help="Pieces of fewer notes are refused.")] = 2,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Read links in the folder that lead out of it.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Default: one for each core.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Throw away what an earlier run left in --out.")
    ] = False,
) -> None:
    """Turn MIDI, MusicXML, ABC and kern files into note shards."""
    screen = Console(stderr=True)
    given = {"artist": artist, "genres": genre, "licence": licence}
    metadata = {name: value for name, value in given.items() if value}
    if source.startswith(CORPUS):
        files, passed_over = corpus_files(source.removeprefix(CORPUS), metadata, screen)
    else:
        files, passed_over = find_note_files(Path(source), metadata, follow_links)
    with ProgressReporter() as progress:
        progress.add("files", total=len(files))
        report = prepare_notes(
            files,
            passed_over,
            out,
            NotesIngestConfig(files_per_shard, pedal, min_notes),
            processes=min(processes or cores(), len(files)),
            made_by=made_by(),
            fresh=fresh,
            after_file=lambda count: progress.advance("files", count),
        )
    print_report(screen, report, out)


def corpus_files(
    names: str, metadata: dict[str, Any], screen: Console
) -> tuple[list[NoteFile], list[IngestNote]]:
    """Files of collections that music21 brings along; what its licence says goes to the screen.

    Raises:
        UserError: music21 is not installed, or has no such collection.
    """
    spec = find_spec("music21")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"music21 brings these collections along: {EXTRA}")
    corpus = Path(spec.submodule_search_locations[0]) / "corpus"
    files: list[NoteFile] = []
    notes: list[IngestNote] = []
    for name in names.split(","):
        if name not in COLLECTIONS:
            raise UserError(f"music21:{name} is none of {', '.join(COLLECTIONS)}")
        collection = COLLECTIONS[name]
        facts = {
            "artist": collection.artist,
            "genres": list(collection.genres),
            "licence": collection.licence,
            **metadata,
        }
        known = {field: value for field, value in facts.items() if value}
        found, others = find_note_files(corpus / collection.folder, known)
        files += [
            replace(file, folder=corpus, name=f"{collection.folder}/{file.name}") for file in found
        ]
        notes += others
    licence = read_given(corpus / "license.txt", 1 << 20).decode(errors="replace")
    lines = [line for line in licence.splitlines() if line and not line.startswith("#")]
    screen.print("music21's corpus/license.txt: " + " ".join(lines[:LICENCE_LINES]), style="dim")
    return files, notes


def print_report(screen: Console, report: NotesReport, out: Path) -> None:
    """What was written, passed over and refused."""
    index = report.index
    screen.print(
        f"{index['songs']} pieces, {report.notes_count:,} notes, {index['seconds'] / 60:.0f} minutes "
        f"in {len(index['shards'])} shards in {out}",
        highlight=False,
    )
    for licence, count in report.licences.most_common():
        screen.print(f"licence of {count}: {plain(licence)}", highlight=False)
    counts = Counter(note.kind for note in report.notes)
    rows = [(NOTE_KINDS[kind], str(count)) for kind, count in counts.most_common()]
    print_table(screen, f"told in {out / NOTES_FILE}", rows, columns=("what", "how often"))
    refused = Counter(line["reason"] for line in report.refused)
    told = [(reason, str(count)) for reason, count in refused.most_common()]
    columns = ("reason", "how often")
    print_table(screen, f"refused, in {out / 'refused.jsonl'}", told, columns=columns)


if __name__ == "__main__":
    run_command(main, "prepare-notes")
