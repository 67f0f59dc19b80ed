"""Sample songs from a trained jukebox: a folder with the runs vqvae, top_prior, middle_upsampler, bottom_upsampler.

    megajukebox sample runs/tiny --requests songs.yaml --out samples                            # one process
    deepspeed --num_gpus 2 megajukebox/sample.py runs/tiny --requests songs.yaml --out samples  # requests dealt out
    megajukebox sample runs/tiny --artist "..." --genre "..." --lyrics words.txt --seconds 8 --seed 1 --out samples
    megajukebox sample runs/tiny --artist "..." temperature=0.9 guidance=2 'moods=[calm]'   # any setting of a request
    megajukebox sample runs/tiny --names                                            # which artists, genres ... it knows
    megajukebox sample runs/tiny --sampler student --seconds 60                     # parallel students upsample
    megajukebox sample runs/tiny --prompt demo.wav --keep-seconds 3 --seconds 10    # goes on from a recording
    megajukebox sample runs/tiny --infill samples/song.json --replace 2-3.5 --lyrics other.txt --name mended
    megajukebox sample runs/tiny --reconstruct shards/songs --count 8                # what the codes keep of real songs

Songs that are there already are not made again, interrupted ones go on where they were: give the same command again. A
request that cannot be made is named, and the others go on. Every mode has its command in docs/sampling.md.
"""

import json
import os
import signal
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from megajukebox.common.command_line import run_command
from megajukebox.common.files import make_folder, write_atomic
from megajukebox.common.levels import PRIOR_FOLDERS
from megajukebox.common.model_files import read_facts
from megajukebox.common.world import World, world
from megajukebox.conditioning.vocabulary import UNKNOWN, read_vocabularies
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.sampling.jukebox import (
    DecodingPolicy,
    GeneratedSong,
    Jukebox,
    SamplingInterrupted,
)
from megajukebox.sampling.levels.autoregressive import DECODINGS
from megajukebox.sampling.memory_budget import LevelMemory, fit_batch, free_memory
from megajukebox.sampling.progress import ProgressDisplay
from megajukebox.sampling.reporting import ProgressFile
from megajukebox.sampling.request_queue import RequestQueue
from megajukebox.sampling.songs.reconstruction import reconstructions, select_rows
from megajukebox.sampling.songs.requests import SongRequest, parse_requests, read_requests
from megajukebox.training.config import override

STOPPED = 85  # stopped on request, all saved: start again


class Precision(str, Enum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def main(
    runs: Annotated[Path, typer.Argument(help="The folder of the runs.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Others of a request's settings: temperature=0.9 'moods=[calm]' ..."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for the songs.")] = Path("samples"),
    requests: Annotated[Path | None, typer.Option(help="A YAML or JSON list of requests.")] = None,
    artist: Annotated[str | None, typer.Option(help="Who plays.")] = None,
    genre: Annotated[list[str] | None, typer.Option(help="May be given several times.")] = None,
    lyrics: Annotated[Path | None, typer.Option(help="A .txt or .lrc file to sing.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Length of the song; default: 10.")] = None,
    seed: Annotated[int | None, typer.Option(help="One seed, one song; default: 0.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the song's files; default: song.")
    ] = None,
    variations: Annotated[
        int | None, typer.Option(help="Songs, with seeds seed, seed + 1, ...; default: 1.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="A recording or an earlier sample to go on from.")
    ] = None,
    keep_seconds: Annotated[
        float | None, typer.Option(help="How much of the prompt is kept; default: all.")
    ] = None,
    upsample: Annotated[
        str | None, typer.Option(help="An earlier sample whose lower levels are made anew.")
    ] = None,
    infill: Annotated[
        str | None, typer.Option(help="A recording or sample of which --replace is made anew.")
    ] = None,
    replace: Annotated[
        list[str] | None, typer.Option(help="A range of seconds, as 2-3.5; may be repeated.")
    ] = None,
    reconstruct: Annotated[
        str | None, typer.Option(help="Song shards: held-out songs and their reconstructions.")
    ] = (None),
    names: Annotated[
        bool, typer.Option("--names", help="Only tell which names the top prior knows.")
    ] = False,
    count: Annotated[
        int, typer.Option(min=1, help="With --reconstruct: how many held-out songs.")
    ] = 8,
    song: Annotated[
        list[str] | None, typer.Option(help="With --reconstruct: songs by key instead.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Songs sampled in lockstep; bounds the memory.")
    ] = 16,
    precision: Annotated[
        Precision, typer.Option(help="Of the priors' weights; half of the memory in 16 bits.")
    ] = (Precision.float32),
    memory: Annotated[
        float | None,
        typer.Option(
            help="GB for priors and songs (default: what is free); fewer at once if need be."
        ),
    ] = None,
    exact: Annotated[
        bool, typer.Option(help="--no-exact: upsample all windows at once; quicker, with seams.")
    ] = True,
    way: Annotated[
        str, typer.Option(help=f"auto, or one of {', '.join(DECODINGS)}, for every level.")
    ] = "auto",
    int8: Annotated[
        bool, typer.Option(help="Round the priors' weights to 8 bits: quicker, other songs.")
    ] = False,
    sampler: Annotated[
        list[str] | None, typer.Option(help="student, top=student, bottom=polished ...: docs.")
    ] = None,
    progress: Annotated[
        Path | None, typer.Option(help="A file to keep how far it has come in, as JSON.")
    ] = None,
    local_rank: Annotated[
        int, typer.Option("--local_rank", hidden=True, help="The deepspeed launcher gives it.")
    ] = 0,
) -> None:
    """Sample songs: those of --requests, or the one that the options tell.

    Exits with 1 if a request could not be made, with 85 if it was stopped (start it again).
    """
    here = world()
    # One token's work is too small to share between threads: two were measured 20 times slower on a busy machine.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    device = f"cuda:{here.local_rank}" if torch.cuda.is_available() else "cpu"
    try:
        if reconstruct:
            shards = ShardSet(reconstruct)
            rows = select_rows(shards, runs / "vqvae", song or [], count)[here.rank :: here.size]
            save_all(reconstructions(runs, shards, rows, seconds or 10.0, device), out)
            return
        if names:
            tell_names(runs / PRIOR_FOLDERS["top"])
            return
        one = {
            "id": name, "artist": artist, "genres": genre, "lyrics": words_of(lyrics) if lyrics else None,
            "seconds": seconds, "seed": seed, "variations": variations, "prompt": prompt, "keep_seconds": keep_seconds,
            "upsample": upsample, "infill": infill, "replace": ranges(replace),
        }  # fmt: skip
        asked, wrong = asked_of(
            requests, {key: value for key, value in one.items() if value is not None}, settings
        )
        make_folder(out)
        jukebox = Jukebox(
            runs,
            device,
            getattr(torch, Precision(precision).value),
            engine_of(exact, way, int8),
            students=sampler or (),
        )
        if asked:
            batch_size = within(memory, jukebox, asked, batch_size, here)
    except (ValueError, OSError) as error:
        raise SystemExit(f"sample: {error}") from error
    make_all(jukebox, asked, wrong, out, batch_size, here, progress)


def make_all(
    jukebox: Jukebox, asked: list[SongRequest], wrong: list[str], out: Path, batch_size: int, here: World,
    progress: Path | None,
) -> None:  # fmt: skip
    """Make this rank's songs and tell of all; SystemExit as in `main`. `wrong`: of the requests that cannot be made."""
    if here.rank == 0:
        for line in wrong:
            print(f"sample: {line}")
    dealer = RequestQueue(jukebox, asked, out, here.rank, here.size, batch_size)
    if here.rank == 0 and asked and not dealer.pending():
        print(
            f"nothing to do: made before, of the same requests and weights: {asked[0].id} ...",
            flush=True,
        )
    maker = SamplingRun(
        jukebox, asked, out, batch_size, here.rank == 0, progress if here.rank == 0 else None
    )
    try:
        dealer.run(maker.make, lambda line: print(f"sample: {line}", flush=True))
    except SamplingInterrupted:
        print(
            "sample: stopped; what was done is saved, the same command goes on from there",
            flush=True,
        )
        raise SystemExit(STOPPED) from None
    if here.rank == 0:
        summarise(out, asked, wrong, dealer.failed)
    if wrong or dealer.failed:
        raise SystemExit(1)


def save_all(songs: Iterable[GeneratedSong], out: Path) -> None:
    for song in songs:
        print(song.save(out), flush=True)


def asked_of(
    file: Path | None, one: dict[str, Any], settings: list[str] | None
) -> tuple[list[SongRequest], list[str]]:
    """The requests of `file`, or the one that the command line tells; and one line for each that cannot be made."""
    for setting in settings or []:
        override(one, setting)
    if file is None:
        return parse_requests([{"id": "song"} | one])
    if one:
        raise ValueError(
            f"{', '.join(one)} cannot be given beside --requests; write them into {file}"
        )
    return read_requests(file)


def words_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"lyrics {str(file)!r} cannot be read ({error}); give a text in UTF-8"
        ) from None


def tell_names(prior: Path) -> None:
    """Every name that a request may use, by condition, as the vocabularies of `prior` spell it."""
    read_facts(prior)
    for condition, known in read_vocabularies(prior).items():
        print(f"{condition}: {', '.join(name for name in known.names if name != UNKNOWN)}")


def ranges(given: list[str] | None) -> list[list[float]] | None:
    """2-3.5 -> [2.0, 3.5]. ValueError for anything else."""
    if given is None:
        return None
    found = []
    for text in given:
        try:
            start, end = map(float, text.split("-"))
        except ValueError:
            raise ValueError(
                f"replace {text!r} is no range of seconds; write it as 2-3.5"
            ) from None
        found.append([start, end])
    return found


def engine_of(exact: bool, way: str, int8: bool) -> DecodingPolicy:
    if not exact and way not in ("auto", "windows"):
        raise ValueError(f"--no-exact takes the way windows, not {way}; leave one of the two out")
    if way not in ("auto", *DECODINGS):
        raise ValueError(f"way {way!r} is unknown; choose auto or one of {', '.join(DECODINGS)}")
    return DecodingPolicy(exact, way, int8)


def needs_of(jukebox: Jukebox, asked: list[SongRequest]) -> list[LevelMemory]:
    """What each level takes for the longest of the requests."""
    twins = (
        2
        if any(strength != 1 for request in asked for strength in request.guidance.values())
        else 1
    )
    needs = []
    for level, run in jukebox.levels.items():
        # Windows of a song go in lockstep where they need not wait for each other; each begins with a run-up of 1/8.
        at_once = level in jukebox.students or jukebox.policy.decoding_of(level, 2, None) in (
            "windows",
            "across",
        )
        codes = max((jukebox.num_codes(request, level) for request in asked), default=1)
        windows = -(-8 * codes // (7 * run.config.window)) if at_once else 1
        needs.append(LevelMemory(run.config, windows, twins, level in jukebox.students))
    return needs


def within(
    memory: float | None, jukebox: Jukebox, asked: list[SongRequest], batch_size: int, here: World
) -> int:
    """The batch that stays within `memory` GB, or what is free now; priors stay loaded if that fits. Says so."""
    cpu, local = jukebox.device.type == "cpu", int(os.environ.get("LOCAL_WORLD_SIZE", here.size))
    limit = free_memory(jukebox.device, local) if memory is None else memory * 1e9
    found = fit_batch(
        needs_of(jukebox, asked), min(batch_size, max(1, len(asked))), limit, jukebox.dtype, cpu
    )
    jukebox.keep_loaded = found.keep_loaded
    if here.rank == 0:
        where = "asked for" if memory is not None else "free"
        print(f"memory: {found}; {limit / 1e9:.3g} GB are {where}", flush=True)
    return found.songs


class SamplingRun:
    """Makes the songs of one batch after another, shows how far they are, and stops between codes when asked to."""

    def __init__(
        self,
        jukebox: Jukebox,
        requests: list[SongRequest],
        out: Path,
        batch_size: int,
        show: bool,
        progress: Path | None,
    ):
        self.jukebox, self.out, self.batch_size, self.show = jukebox, out, batch_size, show
        totals = {n: sum(jukebox.num_codes(r, n) for r in requests) for n in jukebox.levels}
        self.report = ProgressFile(progress, totals)
        self.stopping = False
        for wish in (signal.SIGTERM, signal.SIGINT):
            signal.signal(wish, self.stop)

    def stop(self, *_: Any) -> None:
        self.stopping = True

    def make(self, songs: list[GeneratedSong]) -> list[GeneratedSong]:
        with ProgressDisplay(self.jukebox, songs, self.show) as watch:

            def advance(level: str, count: int) -> None:
                watch.advance(level, count)
                self.report.advance(level, count)

            stop: Callable[[], bool] = lambda: self.stopping  # noqa: E731
            made = self.jukebox.sample(songs, self.batch_size, advance, self.heard, self.out, stop)
        for song in made:
            notes = "".join(f"\n  note: {note}" for note in song.notes)
            print(
                f"{self.out / song.request.id}.wav  {song.record()['seconds']:.1f} s{notes}",
                flush=True,
            )
        return made

    def heard(self, level: str, songs: list[GeneratedSong]) -> None:
        if self.show and level != "bottom":
            print(
                f"{level} level can be heard: {self.out / songs[0].levels[level]['audio']}",
                flush=True,
            )


def summarise(
    out: Path, asked: list[SongRequest], wrong: list[str], failed: dict[str, str]
) -> None:
    """What became of all requests that this folder was ever asked for: `.unfinished/summary.json`."""
    path, now = out / ".unfinished" / "summary.json", {request.id: None for request in asked}
    before = (
        json.loads(path.read_text()) if path.exists() else {"made": [], "failed": {}, "refused": []}
    )
    made = [
        song for song in dict.fromkeys([*before["made"], *now]) if (out / f"{song}.json").exists()
    ]
    refused = [
        line
        for line in before["refused"]
        if not any(line.startswith(f"request {song}:") for song in now)
    ]
    found = {
        "made": made,
        "failed": {song: why for song, why in before["failed"].items() if song not in {*now, *made}}
        | failed,
        "refused": list(dict.fromkeys([*refused, *wrong])),
    }
    write_atomic(path, (json.dumps(found, indent=1) + "\n").encode())
    if len(asked) > 1 or wrong:
        print(
            f"{len(set(now) & set(made))} of {len(asked) + len(wrong)} songs are in {out}",
            flush=True,
        )


if __name__ == "__main__":
    run_command(main, "sample")
