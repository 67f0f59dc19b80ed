"""Run the whole pipeline on generated songs (or yours), in minutes: what `make demo` runs.

    megajukebox demo                                  # 540 generated songs -> demo/site/index.html
    megajukebox demo --songs ~/music --out demo_mine  # your own audio

Each stage is the ordinary verb in a process of its own; killed, the same command resumes where it stopped.
"""

import copy
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from megajukebox.common.child_processes import SAFE_PATH, module_command
from megajukebox.common.command_line import run_command
from megajukebox.common.errors import UserError
from megajukebox.common.files import make_folder, write_atomic
from megajukebox.common.levels import VQVAE_FOLDER
from megajukebox.common.untrusted_files import parse_json, read_inside
from megajukebox.common.world import free_port
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.records.jsonl_tail import read_lines
from megajukebox.training.config import Preset, load_preset
from megajukebox.training.stages import TrainingStage, stages_of

PACKAGE = Path(__file__).parents[1]
SONGS_PER_SHARD = (
    8  # several shards even of few songs, so that ranks and readers have something to share
)
# After minutes of training the upsamplers' distributions are too wide; colder, tones emerge from the noise
# (docs/decisions/0007).
TEMPERATURES = {"top": 0.9, "middle": 0.6, "bottom": 0.5}
# Codes of spectra are predictable: colder they stand still. Guidance keeps artist and genre (docs/decisions/0055).
SPECTRUM_TEMPERATURE = 1.0
SPECTRUM_GUIDANCE = 2.0
SONG_REQUESTS = "requests.yaml"
ALL_LEVELS_REQUESTS = "requests_all_levels.yaml"


@dataclass(frozen=True)
class DemoStage:
    name: str
    command: list[str]
    is_done: Callable[[], bool]


def main(
    out: Annotated[Path, typer.Option(help="The folder for everything.")] = Path("demo"),
    songs: Annotated[
        str | None,
        typer.Option(help="A folder of songs or a manifest (default: generated songs)."),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="A name in megajukebox/presets, or a YAML file.")
    ] = "tiny",
    ranks: Annotated[
        int, typer.Option(min=1, help="Processes that train and sample together.")
    ] = 2,
    count: Annotated[int, typer.Option(min=1, help="Songs to generate as training data.")] = 540,
    samples: Annotated[int, typer.Option(min=1, help="Songs to sample.")] = 27,
    seconds: Annotated[float, typer.Option(help="Seconds of each sampled song.")] = 10.0,
    all_levels: Annotated[
        int,
        typer.Option(min=0, help="Of these, songs to hear at all levels too (a top of spectra)."),
    ] = 8,
    settings: Annotated[
        list[str] | None, typer.Argument(help="Changes to the preset: key.sub=value ...")
    ] = None,
) -> None:
    """Train on a folder of songs and sample new ones, all stages."""
    make_folder(out)
    source = songs or f"demo:{count}"
    refuse_other_demo(out, {"songs": source, "preset": preset, "settings": settings or []})
    console = Console()
    seconds_taken: dict[str, float] = {}
    configured = load_preset(preset, settings)
    for stage in stages(out, source, preset, ranks, settings or [], all_levels):
        run_stage(console, stage, seconds_taken)
        if stage.name == "encode":
            requests = song_requests(ShardSet(out / "shards/codes"), configured, samples, seconds)
            write_requests(out / SONG_REQUESTS, requests)
            write_requests(out / ALL_LEVELS_REQUESTS, requests[:all_levels])
    times = out / "times.json"  # of this start and those before
    before = parse_json(read_inside(out, times.name)) if times.exists() else {}
    write_atomic(times, json.dumps({**before, **seconds_taken}, indent=1).encode())
    table = Table("stage", "seconds", title="this time")
    for name, taken in seconds_taken.items():
        table.add_row(name, f"{taken:.0f}")
    table.add_row("all", f"{sum(seconds_taken.values()):.0f}")
    console.print(table)
    page = (out / "site/index.html").resolve()
    console.print(f"Open [bold]{escape(str(page))}[/] in a browser.")


def stages(
    out: Path, source: str, preset: str, ranks: int, settings: list[str], all_levels: int = 0
) -> list[DemoStage]:
    """The pipeline in order; each stage reads what the ones before it wrote.

    Where a song is the top's alone, `all_levels` songs are sampled at the levels below too: before the others, for
    the page lists the newest first. One seed is one song, so their top codes are the same.
    """
    songs = out / "shards/songs"
    codes = out / "shards/codes"
    runs = out / "runs"
    vqvae = runs / VQVAE_FOLDER
    common = ["--preset", preset]
    configured = load_preset(preset, settings)
    # The composer reads written music, which generated songs do not have (docs/notes.md).
    trained = [row for row in stages_of(configured) if row.data != "notes"]

    def training(row: TrainingStage, data: Path) -> DemoStage:
        stage = row.name
        folder = runs / row.folder(configured)
        arguments = [stage, *common, "--data", str(data), "--out", str(folder), *settings]
        command = [*on_ranks(ranks, "train"), *arguments]
        return DemoStage(f"train {stage}", command, lambda: is_finished(folder))

    shard_size = ["--songs-per-shard", str(SONGS_PER_SHARD)]
    prepare = [*verb("prepare"), source, "--out", str(songs), *shard_size, *common]
    encode = [str(songs), "--vqvae", str(vqvae), "--out", str(codes)]

    def sampling(name: str, requests: str, *options: str) -> DemoStage:
        asked = ["--requests", str(out / requests), *options]
        command = [*on_ranks(ranks, "sample"), str(runs), *asked]
        return DemoStage(name, command, lambda: False)

    samplings = [sampling("sample", SONG_REQUESTS, "--out", str(out / "samples"))]
    explore = [str(out / "samples"), str(runs), "--out", str(out / "site")]
    if all_levels and "top" in configured.vqvae.spectrum_levels and configured.middle:
        folder = str(out / "all_levels")
        every = ["--levels", "all", "--out", folder]
        samplings.insert(0, sampling("sample all levels", ALL_LEVELS_REQUESTS, *every))
        explore.insert(1, folder)
    return [
        DemoStage("prepare", prepare, (songs / "index.json").exists),
        *(training(row, songs) for row in trained if row.data == "songs"),
        DemoStage("encode", [*on_ranks(ranks, "encode"), *encode], (codes / "index.json").exists),
        *(training(row, codes) for row in trained if row.data == "codes"),
        *samplings,
        DemoStage("explore", [*verb("explore"), "build", *explore], lambda: False),
    ]


def verb(name: str) -> list[str]:
    return module_command("megajukebox", name)


def on_ranks(ranks: int, entry: str) -> list[str]:
    """An entry under the deepspeed launcher of this environment, on a port of its own."""
    search_path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    deepspeed = shutil.which("deepspeed", path=search_path)
    if deepspeed is None:
        raise UserError(
            "the deepspeed command is missing; install this package's dependencies (make install)"
        )
    options = ["--log_level", "warning", "--num_gpus", str(ranks), "--master_port"]
    return [deepspeed, *options, str(free_port()), str(PACKAGE / f"{entry}.py")]


def is_finished(run: Path) -> bool:
    events = read_lines(run / "events.jsonl")
    return bool(events) and events[-1]["event"] == "done"


def refuse_other_demo(out: Path, source: dict[str, Any]) -> None:
    """Keep one demo in one folder.

    Raises:
        UserError: `out` holds a demo of other songs or settings.
    """
    path = out / "demo.json"
    if path.exists() and parse_json(read_inside(out, path.name)) != source:
        raise UserError(
            f"{out} holds a demo of other songs or settings ({path});"
            " give another --out, or remove it"
        )
    write_atomic(path, json.dumps(source).encode())


def run_stage(console: Console, stage: DemoStage, seconds_taken: dict[str, float]) -> None:
    """Run one stage to its end; exit with its status if it fails."""
    if stage.is_done():
        console.print(f"[bold]{stage.name}[/] is done")
        return
    console.rule(f"[bold]{stage.name}")
    environment = {
        **os.environ,
        **SAFE_PATH,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }
    if not shutil.which("nvidia-smi"):
        environment["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed warns in every process
    started = time.perf_counter()
    status = subprocess.run(stage.command, env=environment).returncode
    if status:
        raise SystemExit(
            f"demo: {stage.name} failed with exit status {status};"
            " fix the cause, then the same command resumes there"
        )
    seconds_taken[stage.name] = time.perf_counter() - started


def song_requests(
    codes: ShardSet, configured: Preset, count: int, seconds: float
) -> list[dict[str, Any]]:
    """Requests for every artist and genre of the corpus; with lyrics of its songs, if the top is told any."""
    vocabulary = codes.index["vocabulary"]
    artists = list(vocabulary.get("artist", {})) or [None]
    genres = list(vocabulary.get("genres", {})) or [None]
    pairs = list(product(artists, genres))
    lyrics = lyrics_by_artist(codes) if configured.top.lyrics else {}
    settings: dict[str, Any] = {"temperature": dict(TEMPERATURES)}
    if "top" in configured.vqvae.spectrum_levels:
        settings["temperature"]["top"] = SPECTRUM_TEMPERATURE
        settings["guidance"] = {"top": SPECTRUM_GUIDANCE}
    requests = []
    for number in range(count):
        artist, genre = pairs[number % len(pairs)]
        request: dict[str, Any] = {"id": f"song-{number:02d}"}
        if artist is not None:
            request["artist"] = artist
        if genre is not None:
            request["genres"] = genre
        if configured.top.lyrics:
            texts = lyrics.get(artist) or lyrics.get(None) or [""]
            request["lyrics"] = texts[number // len(pairs) % len(texts)]
        request |= {"seconds": seconds, "seed": number}
        requests.append({**request, **copy.deepcopy(settings)})  # YAML would write one as an alias
    return requests


def lyrics_by_artist(codes: ShardSet) -> dict[str | None, list[str]]:
    """Lyrics as they are (with times, where the song has them); under None those of all artists."""
    lyrics: dict[str | None, list[str]] = {}
    for row in range(len(codes)):
        if codes.has(row, "lyrics"):
            artist = codes.read_facts(row).get("artist")
            text = codes.read_member(row, "lyrics").decode()
            lyrics.setdefault(artist, []).append(text)
            lyrics.setdefault(None, []).append(text)
    return lyrics


def write_requests(path: Path, requests: list[dict[str, Any]]) -> None:
    text = yaml.safe_dump(requests, sort_keys=False, allow_unicode=True)
    write_atomic(path, text.encode())


if __name__ == "__main__":
    run_command(main, "demo")
