"""Compose pieces with a trained composer: new ones, or what is missing in a given one.

    megajukebox compose runs/tiny --bars 16 --out pieces                     # a new piece
    megajukebox compose runs/tiny --composer "Johann Sebastian Bach" --variations 4
    megajukebox compose runs/tiny --instrument violin --instrument cello --metre 3/4 --tempo 96
    megajukebox compose runs/tiny --from tune.mid --bars 8                   # eight bars more
    megajukebox compose runs/tiny --from tune.mid --fill parts=ATB --variations 8 --keep best
    megajukebox compose runs/tiny --from piece.mid --fill bars=3-4,parts=T   # the tenor of two bars
    megajukebox compose runs/tiny --from piece.mid --fill bars=9-            # from bar 9 on
    megajukebox compose runs/tiny --from piece.mid --rewrites 8              # a variation of it
    megajukebox compose runs/tiny --formats mid,wav --soundfont GM.sf2       # and how it sounds

Each piece is a .mid, a .musicxml, an .abc, and a .json that says how it was made, with figures of counterpoint.
One seed is one piece, whatever else is composed beside it. Known notes stay as they are.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from megajukebox.common.command_line import run_command
from megajukebox.common.errors import UserError
from megajukebox.common.files import make_folder, write_atomic
from megajukebox.common.provenance import made_by
from megajukebox.data.piece_files import WAV, check_formats, find_soundfont, save_piece
from megajukebox.notes.fill import FillRegion
from megajukebox.notes.readers import read_notes
from megajukebox.sampling.composing.choose import UNCHOSEN, best_first
from megajukebox.sampling.composing.composer import (
    MAX_EVENTS,
    ComposedPiece,
    Composer,
    PieceRequest,
    expand_seeds,
)

METRE = re.compile(r"(\d{1,2})/(\d{1,2})")


def main(
    runs: Annotated[Path, typer.Argument(help="The run of a composer, or the folder above it.")],
    out: Annotated[Path, typer.Option(help="The folder for the pieces.")] = Path("pieces"),
    composer: Annotated[str | None, typer.Option(help="In whose manner.")] = None,
    genre: Annotated[list[str] | None, typer.Option(help="In which style.")] = None,
    instrument: Annotated[
        list[str] | None, typer.Option(help="A family of instruments; no other plays.")
    ] = None,
    bars: Annotated[int, typer.Option(min=0, help="How many; 0: as the composer likes.")] = 16,
    metre: Annotated[str, typer.Option(help="For example 3/4.")] = "4/4",
    tempo: Annotated[float, typer.Option(min=0, help="Quarters a minute; 0: any.")] = 0.0,
    beginning: Annotated[
        Path | None, typer.Option("--from", help="A file of notes to go on from.")
    ] = None,
    fill: Annotated[
        str | None,
        typer.Option(help="What of --from is written anew: parts=ATB, bars=9-, bars=3-4,parts=T."),
    ] = None,
    rewrites: Annotated[
        int, typer.Option(min=0, help="Rectangles of bars and parts that are then drawn anew.")
    ] = 0,
    variations: Annotated[
        int,
        typer.Option("--variations", "--count", min=1, help="Pieces, with seeds from --seed on."),
    ] = 1,
    keep: Annotated[
        str, typer.Option(help="The best by counterpoint: best, or how many; all.")
    ] = "all",
    seed: Annotated[int, typer.Option(help="Of the first piece.")] = 0,
    temperature: Annotated[float, typer.Option(min=0.01, help="Below 1: fewer surprises.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Only the likeliest events; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Only this mass; 0: all.")] = 0.0,
    max_events: Annotated[int, typer.Option(min=16, help="A longer piece is ended.")] = MAX_EVENTS,
    formats: Annotated[
        str, typer.Option(help="Files of each piece: mid, musicxml, abc, wav, with commas between.")
    ] = "mid,musicxml,abc",
    soundfont: Annotated[
        Path | None, typer.Option(help="With wav: the .sf2 or .sf3 file to play it with.")
    ] = None,
) -> None:
    """Compose pieces of written music."""
    wanted = [form.strip() for form in formats.split(",")]
    check_formats(wanted)
    if WAV in wanted:
        find_soundfont(soundfont)
    if beginning is None and (fill or rewrites):
        raise UserError("--fill and --rewrites need a piece; give --from")
    region = FillRegion.parse(fill) if fill else None
    if rewrites and region is None:
        region = FillRegion()
    request = PieceRequest(
        seed=seed,
        artist=composer,
        genres=tuple(genre or ()),
        instruments=tuple(instrument or ()),
        bars=bars,
        metre=metre_of(metre),
        bpm=tempo,
        beginning=read_notes(beginning) if beginning else None,
        region=region,
        rewrites=rewrites,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_events=max_events,
    )
    kept = number_kept(keep, variations)
    made = Composer(runs)
    pieces = made.compose(expand_seeds(request, variations))
    if kept is not None:
        pieces = best_first(pieces)[:kept]
    make_folder(out)
    screen = Console(stderr=True)
    for piece in pieces:
        name = f"piece-{piece.request.seed:04d}"
        save(out, name, piece, made, wanted, soundfont)
        endings = ", ".join(f".{form}" for form in wanted)
        screen.print(f"{out / name} {endings}: {summary(piece)}", highlight=False)


def number_kept(text: str, variations: int) -> int | None:
    """None: all, in order of their seeds.

    Raises:
        UserError: it is neither a word nor a number of them.
    """
    if text == "all":
        return None
    if text == "best":
        return 1
    if not text.isdecimal() or not 1 <= int(text) <= variations:
        raise UserError(f"--keep {text} is none of 1 to {variations}, best, all; see --variations")
    return int(text)


def summary(piece: ComposedPiece) -> str:
    parts = ", ".join(part.name for part in piece.notes.parts)
    counts = f"{len(piece.notes.bars)} bars, {piece.notes.seconds:.0f} s"
    return f"{counts}, {len(piece.notes.notes)} notes, {parts}"


def metre_of(text: str) -> tuple[int, int]:
    """Raises UserError for what is no metre."""
    match = METRE.fullmatch(text)
    if not match or 0 in (int(match[1]), int(match[2])):
        raise UserError(f"metre {text!r} is none; write for example 3/4")
    return int(match[1]), int(match[2])


def save(
    folder: Path,
    name: str,
    piece: ComposedPiece,
    composer: Composer,
    formats: Sequence[str],
    soundfont: Path | None,
) -> None:
    """The piece in every format, and the record of how it was made."""
    saved = save_piece(piece.notes, folder, name, formats, soundfont=soundfont)
    request: dict[str, Any] = asdict(piece.request)
    request["beginning"] = piece.request.beginning and piece.request.beginning.fingerprint()
    record = {
        "request": request,
        "model": {key: composer.facts.get(key) for key in ("fingerprint", "step", "licences")},
        "notes": {
            "fingerprint": piece.notes.fingerprint(),
            "seconds": round(piece.notes.seconds, 3),
            "parts": [part.name for part in piece.notes.parts],
        },
        "figures": {name: round(value, 3) for name, value in piece.figures.items()},
        "not_chosen_by": list(UNCHOSEN),
        "not_in_the_files": {file.path.name: file.lost for file in saved if file.lost},
        "made_by": made_by(),
    }
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    write_atomic(folder / f"{name}.json", text.encode())


if __name__ == "__main__":
    run_command(main, "compose")
