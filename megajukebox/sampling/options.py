"""The options of `megajukebox sample`, grouped as its help shows them, and the requests that they ask for.

A new setting of a request needs no option: `megajukebox sample RUNS temperature=0.9` sets any of them.
"""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import read_given
from megajukebox.sampling.levels.autoregressive import DECODINGS
from megajukebox.sampling.songs.requests import SongRequest, parse_requests, read_requests

MAX_LYRICS_BYTES = 1 << 20
SONG = "The song"
EDIT = "Continue or change a recording"
SPEED = "Speed and memory"
OUTPUT = "Input and output"


class Precision(str, Enum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def _option(panel: str, help: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


Runs = Annotated[Path, typer.Argument(help="Folder of the runs.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(help="Other settings of a request: temperature=0.9 'moods=[calm]' ..."),
]

Out = Annotated[Path, _option(OUTPUT, "Folder for the songs.")]
Requests = Annotated[Path | None, _option(OUTPUT, "YAML or JSON list of requests.")]
ListConditions = Annotated[
    bool,
    _option(OUTPUT, "Print the names that the top prior knows, and exit.", "--list-conditions"),
]
Progress = Annotated[
    Path | None, _option(OUTPUT, "File that keeps the codes sampled so far, as JSON.")
]

Artist = Annotated[str | None, _option(SONG, "Artist to condition on (see --list-conditions).")]
Genre = Annotated[list[str] | None, _option(SONG, "Genre to condition on; may be repeated.")]
Lyrics = Annotated[Path | None, _option(SONG, "Lyrics to sing, a .txt or .lrc file.")]
Seconds = Annotated[float | None, _option(SONG, "Seconds of audio to generate (default: 10).")]
Seed = Annotated[int | None, _option(SONG, "Seed; one seed, one song (default: 0).")]
Name = Annotated[str | None, _option(SONG, "Name of the song's files (default: song).")]
Variations = Annotated[
    int | None, _option(SONG, "Number of songs, with seeds seed, seed + 1, ... (default: 1).")
]

Prompt = Annotated[str | None, _option(EDIT, "Recording or earlier sample to continue.")]
KeepSeconds = Annotated[
    float | None, _option(EDIT, "Seconds of the prompt to keep (default: all).")
]
Upsample = Annotated[
    str | None, _option(EDIT, "Earlier sample whose lower levels are sampled again.")
]
Infill = Annotated[
    str | None, _option(EDIT, "Recording or sample of which --replace is sampled again.")
]
Replace = Annotated[
    list[str] | None, _option(EDIT, "Range of seconds to replace, as 2-3.5; may be repeated.")
]

Levels = Annotated[
    str | None,
    _option(
        SONG,
        "Levels to sample: top, or top,middle, or all (default: top where its target is spectrum, else all).",
    ),
]
BatchSize = Annotated[
    int, _option(SPEED, "Songs sampled in lockstep; bounds the memory (default: 16).", min=1)
]
PrecisionOption = Annotated[
    Precision, _option(SPEED, "Precision of the priors' weights.", "--precision")
]
Memory = Annotated[
    float | None,
    _option(SPEED, "GB for priors and songs (default: what is free); lowers --batch-size to fit."),
]
Exact = Annotated[
    bool, _option(SPEED, "Not exact: sample all windows at once; faster, with seams.")
]
DecodingOption = Annotated[
    str, _option(SPEED, f"Decoding of every level: auto or {', '.join(DECODINGS)}.")
]
Int8 = Annotated[
    bool, _option(SPEED, "Round the priors' weights to 8 bits; faster, but other songs.")
]
Sampler = Annotated[
    list[str] | None,
    _option(SPEED, "Students: student, top=student, bottom=verified, ...; may be repeated."),
]

AdapterOption = Annotated[
    list[str] | None,
    _option(
        SONG,
        "Adapter, FOLDER or FOLDER:SCALE (default scale: 1); may be repeated.",
        "--adapter",
    ),
]
AdapterAnyway = Annotated[
    bool,
    _option(SONG, "Use adapters that were trained beside other weights, too.", "--adapter-anyway"),
]
Refiner = Annotated[
    list[Path] | None,
    _option(
        OUTPUT,
        "Run of a refiner (default: RUNS/refiner_LEVEL, where there are any); may be repeated.",
    ),
]
Refine = Annotated[
    bool, _option(OUTPUT, "Write what refiners make of the codes, beside the decoder's audio.")
]

LocalRank = Annotated[
    int, typer.Option("--local_rank", hidden=True, help="Given by the deepspeed launcher.")
]
# Of version 0.1, which had `reconstruct` as a mode of `sample`; they go with the next version.
OldReconstruct = Annotated[str | None, typer.Option("--reconstruct", hidden=True)]
OldCount = Annotated[int, typer.Option("--count", hidden=True)]
OldSong = Annotated[list[str] | None, typer.Option("--song", hidden=True)]


def refiner_runs(refiner: list[Path] | None, refine: bool) -> list[Path] | None:
    """Runs of refiners; None: those that lie beside the other runs. Raises UserError for --refiner with --no-refine."""
    if refiner and not refine:
        raise UserError("--refiner and --no-refine contradict each other; give one of them")
    return refiner if refine else []


def song_settings(
    name: str | None,
    artist: str | None,
    genres: list[str] | None,
    lyrics: Path | None,
    seconds: float | None,
    seed: int | None,
    variations: int | None,
) -> dict[str, Any]:
    """What the options of the panel "The song" say, as settings of a request.

    Raises:
        UserError: the file of the lyrics cannot be read.
    """
    text = None
    if lyrics is not None:
        try:
            text = read_given(lyrics, MAX_LYRICS_BYTES).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"lyrics {str(lyrics)!r} cannot be read ({error}); give a text in UTF-8"
            ) from None
    return {
        "id": name,
        "artist": artist,
        "genres": genres,
        "lyrics": text,
        "seconds": seconds,
        "seed": seed,
        "variations": variations,
    }


def edit_settings(
    prompt: str | None,
    keep_seconds: float | None,
    upsample: str | None,
    infill: str | None,
    replace: list[str] | None,
) -> dict[str, Any]:
    """What the options of the panel "Continue or change a recording" say, as settings of a request.

    Args:
        replace: ranges of seconds: ["2-3.5"] becomes [[2.0, 3.5]].

    Raises:
        UserError: a range is none.
    """
    ranges: list[list[float]] = []
    for text in replace or []:
        try:
            start, end = map(float, text.split("-"))
        except ValueError:
            raise UserError(f"replace {text!r} is no range of seconds; write it as 2-3.5") from None
        ranges.append([start, end])
    return {
        "prompt": prompt,
        "keep_seconds": keep_seconds,
        "upsample": upsample,
        "infill": infill,
        "replace": None if replace is None else ranges,
    }


def requests_from_options(
    file: Path | None, options: dict[str, Any]
) -> tuple[list[SongRequest], list[str]]:
    """The valid requests of `file`, or the one that `options` (settings of a request; None: not given) ask for.

    Also returns one line for each request that is not valid.

    Raises:
        UserError: both are given, or the file holds no requests.
    """
    settings = {name: value for name, value in options.items() if value is not None}
    if file is None:
        return parse_requests([{"id": "song", **settings}])
    if settings:
        raise UserError(
            f"{', '.join(settings)} cannot be given beside --requests; write them into {file}"
        )
    return read_requests(file)
