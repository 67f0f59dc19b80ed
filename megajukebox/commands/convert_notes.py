"""Convert a file of notes into another format, or into a sound.

    megajukebox convert-notes tune.mid tune.musicxml             # .mid, .kar, .abc, .musicxml, .mxl, .krn in
    megajukebox convert-notes chorale.krn chorale.abc            # .mid, .musicxml, .abc, .wav out
    megajukebox convert-notes tune.abc tune.wav                  # by the system's soundfont, or pretty_midi's
    megajukebox convert-notes tune.abc tune.wav --soundfont ~/GeneralUser.sf2

What the new format cannot hold is printed.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from megajukebox.common.command_line import run_command
from megajukebox.common.errors import UserError
from megajukebox.common.files import make_folder
from megajukebox.common.plain_text import plain
from megajukebox.data.piece_files import PIECE_FORMATS, save_piece
from megajukebox.notes.readers import read_notes


def main(
    source: Annotated[Path, typer.Argument(help="A file of notes.")],
    target: Annotated[
        Path, typer.Argument(help="The file to write: .mid, .musicxml, .abc or .wav.")
    ],
    title: Annotated[str, typer.Option(help="Of the sheet (default: the file's name).")] = "",
    soundfont: Annotated[
        Path | None, typer.Option(help="With .wav: the .sf2 or .sf3 file to play it with.")
    ] = None,
) -> None:
    """Convert a file of notes to .mid, .musicxml, .abc or .wav."""
    form = target.suffix.lower().removeprefix(".")
    if form not in PIECE_FORMATS:
        endings = ", ".join(f".{one}" for one in PIECE_FORMATS)
        raise UserError(f"{target} ends in {target.suffix!r}; give it one of {endings}")
    notes = read_notes(source)
    make_folder(target.parent)
    saved = save_piece(notes, target.parent, target.stem, [form], title or source.stem, soundfont)
    screen = Console(stderr=True)
    for file in saved:
        screen.print(
            f"{plain(str(file.path))}: {len(notes.parts)} parts, {len(notes.bars)} bars, "
            f"{len(notes.notes)} notes, {notes.seconds:.0f} s",
            highlight=False,
            soft_wrap=True,
        )
        for what in file.lost:
            screen.print(f"not in the file: {what}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_command(main, "convert-notes")
